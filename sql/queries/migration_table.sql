-- Whether any migration was ever applied here.
select to_regclass('tasuki.migration') is not null
