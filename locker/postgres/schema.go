package postgres

import _ "embed"

//go:embed schema.sql
var schema string

// Schema returns the SQL that makes the tables and procedures of [New] and [NewSQL], in a
// schema named flockctx. It can be run again, and by several at once, and brings those
// of an earlier version up to date. Run it as one query without arguments, as a user who
// may create schemas; whoever locks then needs no more than
//
//	grant usage on schema flockctx to app;
//	grant select, insert, update, delete on all tables in schema flockctx to app;
func Schema() string { return schema }
