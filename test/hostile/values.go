package hostile

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/paddockvm/paddock/jobs"
)

// IDs are those that examples name: jobs, batches, snapshots. Who sends a document puts others in their place, where it needs fresh ones.
var IDs = []string{"019a2b3c-4d5e-7f60-8123-456789abcde0", "019a2b3c-4d5e-7f60-8123-456789abcde1", "019a2b3c-4d5e-7f60-8123-456789abcde2"}

// values are JSON, or nearly, in the place of any other.
var values = slices.Concat(plain, numbers, texts)

var (
	plain   = []string{`null`, `true`, `false`, `[]`, `{}`, `[null]`, `{"a":null}`, `{"":""}`, `[[]]`, `[{}]`}
	numbers = []string{
		`0`, `-0`, `1`, `-1`, `2`, `1e3`, `1.5`, `-1.0`, `1e-7`, `1e15`, `1E400`, `255`, `256`, `65535`, `65536`, `1048576`, `2147483648`, `4294967296`,
		`604800000`, `9007199254740993`, `9223372036854775806`, `9223372036854775807`, `9223372036854775808`, `-9223372036854775808`, `-9223372036854775809`, `01`, `NaN`,
	}
	texts = slices.Concat(words, times, schedules, places)
	words = []string{
		`""`, `" "`, `"a"`, `"A"`, `"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, "\"\xff\"", "\"\xed\xa0\x80\"", `"\uffff"`, `"\ufffd"`, `"\u2028<>&"`, `"a\nb"`,
		`"-"`, `"."`, `".."`, `"/"`, `"*"`, `">"`, `"a.b"`, `"a b"`, `"default"`, `"none"`, `"auto"`, `"callbacks"`, `"python"`, `"base"`, `"snapshot:t/x"`, `"allowlist"`, `"internet"`,
		`"root"`, `"retry"`, `"fail"`, `"queued"`, `"dead"`, `"exited"`, `"worker_lost"`, `"vm_failed"`, `"canceled"`, `"expired"`, `"rejected"`, `"v1"`, `"0644"`, `"00000000777"`, `"YQ=="`, `"YQ"`,
		`"` + IDs[0] + `"`, `"` + IDs[1] + `"`, `"` + strings.ToUpper(IDs[0]) + `"`,
		`"` + strings.Repeat("0a", 32) + `"`, `"` + strings.Repeat("a", 63) + `"`, `"` + strings.Repeat("a", 64) + `"`, `"` + strings.Repeat("é", 200) + `"`,
		`"` + strings.Repeat("x", 70_000) + `"`, `"` + strings.Repeat("<", 180<<10) + `"`, `"` + strings.Repeat(`\u0001`, 3000) + `"`,
	}
	times = []string{
		`"2026-01-02T03:04:05Z"`, `"0000-01-01T00:00:00Z"`, `"0000-01-01T00:00:00+01:00"`, `"0001-01-01T00:00:00Z"`, `"0001-01-01T00:00:00.0000001Z"`, `"1970-01-01T00:00:00Z"`,
		`"1969-12-31T23:59:59.999999Z"`, `"9999-12-31T23:59:59Z"`, `"9999-12-31T23:59:59.999999999-23:59"`, `"2026-01-02T03:04:05+24:00"`, `"2026-01-02T03:04:05,5Z"`, `"2026-06-30T23:59:60Z"`,
		`"2100-02-29T00:00:00Z"`, `"1677-09-21T00:12:43Z"`, `"2262-04-11T23:47:17Z"`, `"10000-01-01T00:00:00Z"`, `"-0001-01-01T00:00:00Z"`,
	}
	schedules = []string{
		`"* * * * *"`, `"@every 1s"`, `"@every -5s"`, `"@every 2540400h"`, `"@every 1ns"`, `"@daily"`, `"TZ=UTC"`, `"CRON_TZ="`, `"*/0 * * * *"`, `"59 23 31 2 *"`, `"0 0 29 2 *"`,
		`"1-99999999999 * * * *"`, `"0/9223372036854775807 * * * *"`, `"* * * * 7"`, `"@"`, `"Europe/Berlin"`, `"../etc/passwd"`, `"Local"`, `"America/Nuuk"`, `"Pacific/Apia"`,
	}
	places = []string{
		`"https://example.com/"`, `"http://[::1]:80/"`, `"https://[fe80::1%25eth0]/"`, `"https://a@b/"`, `"https://a:99999/"`, `"https://:443"`, `"//a"`, `"https://a/%zz"`, `"https://a/#f"`, `"https://169.254.169.254/"`,
		`"https://\u0000/"`, `"10.0.0.0/8"`, `"10.0.0.0/33"`, `"::/0"`, `"fe80::1%eth0"`, `"*.example.org"`, `"whsec_"`, `"whsec_` + strings.Repeat("A", 44) + `"`, `"job.ended"`, `"webhook.test"`,
	}
)

// within are pieces of texts.
var within = []string{`\u0000`, `\ud800`, "\xff", "\x01", `\n`, ` `, `../`, `%`, `.`, `*`, `é`, strings.Repeat("x", 300), strings.Repeat("y", 2000)}

// names are those of all fields in the contract.
var names = namesOf(
	jobs.Spec{}, jobs.BatchRequest{}, jobs.BatchQuery{}, jobs.Schedule{}, jobs.ScheduleQuery{}, jobs.GetRequest{}, jobs.ListRequest{}, jobs.ReplayRequest{}, jobs.StdinChunk{},
	jobs.ObjectRequest{}, jobs.EndpointRequest{}, jobs.RotateRequest{}, jobs.DeliveriesRequest{}, jobs.RedeliverRequest{}, jobs.FleetRequest{}, jobs.SnapshotRequest{}, jobs.ResizeRequest{},
	jobs.LeaseRequest{}, jobs.Beat{}, jobs.Report{}, jobs.Event{}, jobs.LeaseReply{}, jobs.BeatReply{},
)

func namesOf(all ...any) []string {
	set, seen := map[string]bool{}, map[reflect.Type]bool{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || seen[t] {
			return
		}
		seen[t] = true
		for _, f := range reflect.VisibleFields(t) {
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && name != "" {
				set[name] = true
			}
			walk(f.Type)
		}
	}
	for _, v := range all {
		walk(reflect.TypeOf(v))
	}
	return slices.Sorted(maps.Keys(set))
}
