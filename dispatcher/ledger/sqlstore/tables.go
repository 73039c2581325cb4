package sqlstore

import "strings"

// table is one that Export and Import move; its rows are ordered by its key.
type table struct {
	name, key string
	columns   []column
	counts    bool // its ids are counted up for ever
}

// column is a name and what its values are.
type column struct {
	name string
	kind kind
}

type kind int

const (
	text kind = iota
	number
	truth
	blob
	null // or a blob
)

// tables are all besides the leader's. A column that is missing here is an error of Export.
func tables() []table {
	return []table{
		of("jobs", "id", `id tenant state attempt# epoch# worker session# image priority# vcpus# memory_mib# network infra_left# user_left# cancel? labels hash
			spec@ spec_bytes# result~ ok? dead? pool requires conc_key conc_limit# depends_on rules? failed_on batch redrive_of redriven_by hooks?
			accepted_at# expires_at# run_at# not_before# leased_at# ended_at#`),
		of("idempotency", "tenant, key", `tenant key job until#`),
		of("attempts", "job, n", `job n# data@`),
		of("depends", "needs, job", `job needs`),
		of("batches", "id", `id tenant total# ended# ok# accepted_at# ended_at# hash key until# incoming?`),
		of("schedules", "tenant, name", `tenant name data@ paused? next_at# last_at# last_job missed#`),
		of("workers", "name", `name session# seen# offer@ cordoned? draining? drain_by#`),
		of("counters", "name", `name n#`),
		counting(of("outbox", "id", `id# event@ dead? batch?`)),
		of("endpoints", "id", `id tenant enabled? data@`),
		counting(of("hooks", "id", `id# tenant type job body@`)),
		of("deliveries", "id", `id tenant target endpoint url event job batch format body@ state step# attempts# created_at# next_at# ended_at# error`),
		of("delivery_tries", "delivery, n", `delivery n# data@`),
		of("callback_secrets", "tenant", `tenant data@`),
	}
}

// of makes a table; # follows a number's name, ? a truth's, @ a blob's, ~ one's that may be null.
func of(name, key, columns string) table {
	t := table{name: name, key: key}
	for _, c := range strings.Fields(columns) {
		bare := strings.TrimRight(c, "#?@~")
		t.columns = append(t.columns, column{bare, map[string]kind{"": text, "#": number, "?": truth, "@": blob, "~": null}[c[len(bare):]]})
	}
	return t
}

func counting(t table) table {
	t.counts = true
	return t
}

func (t *table) names() (l []string) {
	for _, c := range t.columns {
		l = append(l, c.name)
	}
	return l
}

// insert is the statement for one row. A counter is there from the beginning.
func (t *table) insert() string {
	q := `INSERT INTO ` + t.name + ` (` + strings.Join(t.names(), ", ") + `) VALUES (?` + strings.Repeat(`, ?`, len(t.columns)-1) + `)`
	if t.name == "counters" {
		q += ` ON CONFLICT (name) DO UPDATE SET n = excluded.n`
	}
	return q
}
