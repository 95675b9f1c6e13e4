-- Since when nothing new is made in it and none of its keys works; all that it has stays.
ALTER TABLE organisations ADD COLUMN closed_at bigint;
ALTER TABLE projects ADD COLUMN closed_at bigint;
