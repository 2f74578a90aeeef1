-- name: record
-- Append one thing that was done.
insert into audit_logs (id, actor, action, subject, details)
values (%(id)s, %(actor)s, %(action)s, %(subject)s, %(details)s::jsonb);
