-- A transaction can say which schedule the jobs belong to that it inserts, also through functions that know of none.

alter table tasuki.job alter column schedule set default nullif(current_setting('tasuki.schedule', true), '');
