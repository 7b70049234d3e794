-- Databases and roles of the platform; may run any number of times. Run by psql, which takes the passwords from
-- its environment. Each program owns its database and can enter no other; Grafana's role only reads.
\set ON_ERROR_STOP on
\getenv registry_password REGISTRY_PASSWORD
\getenv jobs_password JOBS_PASSWORD
\getenv prefect_password PREFECT_PASSWORD
\getenv dashboards_password DASHBOARDS_PASSWORD

SELECT format('CREATE ROLE %I LOGIN', role) FROM unnest(ARRAY['registry', 'jobs_database', 'prefect', 'dashboards']) AS role
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) \gexec

ALTER ROLE registry PASSWORD :'registry_password';
ALTER ROLE jobs_database PASSWORD :'jobs_password';
ALTER ROLE prefect PASSWORD :'prefect_password';
ALTER ROLE dashboards PASSWORD :'dashboards_password';
ALTER ROLE dashboards SET default_transaction_read_only = on;
ALTER ROLE dashboards SET statement_timeout = '30s';

-- The administrator of a managed server is no superuser: it must belong to a role to give it a database.
GRANT registry, jobs_database, prefect TO CURRENT_USER;

SELECT format('CREATE DATABASE %I OWNER %I', name, owner)
FROM (VALUES ('modelserve', 'registry'), ('jobs', 'jobs_database'), ('prefect', 'prefect')) AS wanted (name, owner)
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec

REVOKE CONNECT ON DATABASE modelserve, jobs, prefect FROM PUBLIC;
GRANT CONNECT ON DATABASE modelserve TO dashboards;

\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;

\connect modelserve
GRANT USAGE ON SCHEMA public TO dashboards;
GRANT CREATE ON SCHEMA public TO registry;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO dashboards;
ALTER DEFAULT PRIVILEGES FOR ROLE registry IN SCHEMA public GRANT SELECT ON TABLES TO dashboards;

\connect jobs
GRANT CREATE ON SCHEMA public TO jobs_database;
