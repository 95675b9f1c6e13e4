-- When the first reading of the life was heard on the day; NULL for rows of earlier releases.
ALTER TABLE engine_counts ADD COLUMN begun_at bigint;
