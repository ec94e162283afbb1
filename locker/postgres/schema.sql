-- The tables and procedures of flockctx's locks by rows. Every statement can be run
-- again; the whole is one transaction.

-- So that several programs that start at once can run it.
select pg_advisory_xact_lock(hashtext('flockctx.schema'));

create schema if not exists flockctx;

-- One row for each name that has been locked. Whoever changes a name's claims, other
-- than by renewing its own, has the name's row locked meanwhile.
create table if not exists flockctx.locks (
	name  bytea primary key,
	token bigint not null default 0 -- of the latest exclusive grant
) with (fillfactor = 50);

-- One row for each lock that is held or waited for.
create table if not exists flockctx.claims (
	id      text primary key,
	name    bytea not null,
	owner   text,                 -- the Locker that renews it; null: nobody any more
	shared  boolean not null,
	since   timestamptz not null, -- the wait began: the place in the queue
	granted timestamptz,          -- null: it waits
	expires timestamptz not null, -- whoever wants the lock may remove it then
	token   bigint,
	under   text[] not null,      -- the claims under which the Lock was called
	host    text not null,
	pid     integer not null,
	note    text not null
) with (fillfactor = 50);
create index if not exists claims_name on flockctx.claims (name);
create index if not exists claims_owner on flockctx.claims (owner);

-- Whom c waits for, or would. An expired claim counts as long as it is there.
create or replace function flockctx.ahead(c flockctx.claims) returns setof flockctx.claims
language sql stable as $$
	select b.* from flockctx.claims b
	where b.name = c.name and b.id <> c.id and not (b.shared and c.shared)
		and (b.granted is not null or (b.since, b.id) < (c.since, c.id))
$$;

-- What each procedure begins with. The statements below rest on READ COMMITTED: after
-- the wait for a row's lock, the next statement sees what the lock's holder has done. A
-- commit that is not on disk could be undone by a crash, and with it a grant. Rows come
-- and go here: an index scan takes note of dead ones and skips them the next time, where
-- other scans would read them again and again until the next vacuum.
create or replace procedure flockctx.prepare() language plpgsql as $$
begin
	if current_setting('transaction_isolation') <> 'read committed' or current_setting('transaction_read_only')::boolean then
		commit;
		set transaction isolation level read committed, read write;
	end if;
	perform set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true);
	if current_setting('synchronous_commit') = 'off' then
		perform set_config('synchronous_commit', 'on', true);
	end if;
end $$;

-- Takes the lock, or a place in the queue for it, or keeps what the claim has. With
-- try, a claim that would have to wait leaves nothing. token is null unless the claim
-- is granted, and 0 for a shared one; look is in how many milliseconds the first of
-- those ahead expires. ttl is in milliseconds, waited in microseconds.
create or replace procedure flockctx.claim(
	claim text, of_name bytea, of_owner text, is_shared boolean, try boolean, ttl bigint, waited bigint,
	is_under text[], on_host text, of_pid integer, with_note text,
	out token bigint, out look bigint)
language plpgsql as $$
declare
	arrived timestamptz := clock_timestamp();
	now     timestamptz;
	me      flockctx.claims;
begin
	call flockctx.prepare();
	loop
		perform from flockctx.locks l where l.name = of_name for no key update;
		exit when found;
		insert into flockctx.locks (name) values (of_name) on conflict do nothing;
	end loop;
	now := clock_timestamp();
	-- One that is locked is being renewed, or guarded by its owner.
	delete from flockctx.claims where id = any (array(
		select c.id from flockctx.claims c where c.name = of_name and c.expires <= now and c.id <> claim
		for update skip locked));
	select c.* into me from flockctx.claims c where c.id = claim;
	if not found then
		me := (claim, of_name, of_owner, is_shared, arrived - waited * interval '1 microsecond', null, null, null, is_under, on_host, of_pid, with_note);
	end if;
	if me.granted is null then
		select ceil(extract(epoch from min(b.expires) - now) * 1000) into look from flockctx.ahead(me) b;
		if look is null then
			me.granted := now;
			me.token := 0;
			if not is_shared then
				-- The clock, so that tokens rise also where a restore or a
				-- promotion has lost the last of them.
				update flockctx.locks l set token = greatest(l.token + 1, (extract(epoch from now) * 1000000)::bigint)
				where l.name = of_name returning l.token into me.token;
			end if;
		elsif try then
			return;
		end if;
	end if;
	me.expires := now + ttl * interval '1 ms';
	insert into flockctx.claims as c select me.*
	on conflict (id) do update set granted = excluded.granted, token = excluded.token, expires = excluded.expires;
	token := me.token;
end $$;

-- Removes a claim and tells those that need not wait any more.
create or replace procedure flockctx.release(claim text, of_name bytea, out held boolean) language plpgsql as $$
begin
	call flockctx.prepare();
	perform from flockctx.locks l where l.name = of_name for no key update;
	delete from flockctx.claims c where c.id = claim;
	held := found;
	perform pg_notify('flockctx_' || w.owner, w.id) from flockctx.claims w
	where w.name = of_name and w.granted is null and w.owner is not null and not exists (select from flockctx.ahead(w));
end $$;

-- Renews all that a Locker holds, and says which claims those are.
create or replace procedure flockctx.renew(of_owner text, ttl bigint, out claims text) language plpgsql as $$
begin
	call flockctx.prepare();
	with renewed as (
		update flockctx.claims c set expires = clock_timestamp() + ttl * interval '1 ms'
		where c.owner = of_owner and c.granted is not null returning c.id
	) select coalesce(string_agg(id, ' '), '') into claims from renewed;
end $$;

-- Removes what crashed processes have left of names that nobody has wanted since, and
-- names that nobody has locked for a day. Tokens rise over that, since they are no lower
-- than the clock.
create or replace procedure flockctx.sweep(out swept bigint) language plpgsql as $$
begin
	call flockctx.prepare();
	delete from flockctx.claims where id in (
		select c.id from flockctx.claims c where c.expires < clock_timestamp() - interval '1 hour' for update skip locked);
	delete from flockctx.locks where name in (
		select l.name from flockctx.locks l
		where l.token < extract(epoch from clock_timestamp() - interval '1 day') * 1000000
			and not exists (select from flockctx.claims c where c.name = l.name)
		for update skip locked);
	get diagnostics swept = row_count;
end $$;

-- Gives up a claim that waits, through whatever others, for itself. One looks at a
-- time, so that a circle loses one claim only.
create or replace procedure flockctx.deadlock(claim text, out circle boolean) language plpgsql as $$
begin
	call flockctx.prepare();
	perform pg_advisory_xact_lock('flockctx.claims'::regclass::oid::integer, 0);
	with recursive reach(id) as (
		select b.id from flockctx.claims c cross join lateral flockctx.ahead(c) b where c.id = claim
		union
		select n.id from reach r cross join lateral (
			select b.id from flockctx.claims c cross join lateral flockctx.ahead(c) b where c.id = r.id and c.granted is null
			union all
			select c.id from flockctx.claims c where c.granted is null and r.id = any (c.under)
		) n
	)
	delete from flockctx.claims c where c.id = claim and c.granted is null and claim in (select id from reach);
	circle := found;
end $$;

-- For people.
create or replace view flockctx.queue as
select encode(name, 'escape') as name, case when shared then 'shared' else 'exclusive' end as mode,
	granted, since, expires - clock_timestamp() as expires_in, host, pid, note, owner, id
from flockctx.claims order by name, granted nulls last, since, id;
