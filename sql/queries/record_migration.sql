-- Remember that a migration was applied.
insert into tasuki.migration (number, name, checksum) values (%(number)s, %(name)s, %(checksum)s)
