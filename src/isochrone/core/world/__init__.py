"""The nouns of the cloud as frozen values: site, link, model, replica, tenant, digest."""
