-- Which application a supervisor runs, by which two are told apart that bring a handler of the same name. Null: it is of a
-- release that does not say.

alter table tasuki.supervisor add column app text;
