-- What an attempt used is written for every job and read for few: as json its text is checked and kept as it is, where jsonb
-- takes it apart into sorted keys and decimal numbers, a fifth of what it costs to write down an outcome.

alter table tasuki.job_archive alter column usage type json;
alter table tasuki.attempt alter column usage type json;
