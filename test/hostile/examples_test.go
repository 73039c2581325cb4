package hostile_test

import (
	"strings"

	"github.com/paddockvm/paddock/jobs"
)

// asked is what can be asked: on a subject, with something like one of the examples, and with which answer.
type asked struct {
	subject  string // T is the tenant, and I an id
	reply    string // the schema; empty for none
	examples []string
}

const (
	id0 = `"019a2b3c-4d5e-7f60-8123-456789abcde0"`
	id1 = `"019a2b3c-4d5e-7f60-8123-456789abcde1"`
	id2 = `"019a2b3c-4d5e-7f60-8123-456789abcde2"`
)

var specs = []string{
	`{"language":"python","source":"print(1)"}`,
	`{"version":"v1","id":` + id0 + `,"idempotency_key":"k","image":"base","steps":[{"shell":"true"}],"infra_retries":1,"retry":{"attempts":3,"rules":[{"endings":["exited"],"exit_codes":[75],"action":"retry"},{"action":"fail"}]}}`,
	`{"id":` + id1 + `,"image":"base","steps":[{"name":"a b","cmd":"ls","args":["-l",""],"env":{"A":"b"},"cwd":"/tmp","stdin":"x","user":"root","limits":{"wall_ms":5}},{"shell":"false"}],` +
		`"files":[{"path":"a","text":"b","mode":"0755"},{"path":"/b","base64":"YQ=="},{"path":"c","object":{"name":"n","sha256":"` + strings.Repeat("0a", 32) + `"}}],` +
		`"artifacts":[{"path":"**/*.txt","max_bytes":5,"optional":true}],"limits":{"disk_bytes":1048576,"wall_ms":1000},"resources":{"vcpus":1,"memory_mib":256},"headroom":{"vcpus":4,"memory_mib":512},` +
		`"network":{"policy":"allowlist","allow":["10.0.0.0/8","example.com"],"ipv6":true,"ports":[1,65535]},"priority":0,"queue_ttl_ms":60000,"labels":{"a":"b"},` +
		`"callbacks":[{"url":"https://example.com/x","events":["job.running","job.ended"]}]}`,
	`{"id":` + id2 + `,"image":"base","steps":[{"shell":"true"}],"run_at":"2026-01-02T03:04:05+01:00","depends_on":[` + id0 + `,` + id1 + `],"concurrency":{"key":"a b","limit":3},"pool":"default","requires":{"arch":"amd64"}}`,
	`{"language":"sh","source":"cat","args":["a"],"stdin_stream":true,"files":[{"path":"x","text":""}]}`,
}

const (
	anEndpoint = `{"url":"https://example.com/hook","events":["job.ended","job.requeued"],"format":"cloudevents","description":"mine","secret":"whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}`
	aBeat      = `{"worker":"w2","session":0,"instance":"i","version":"v","capacity":{"vcpus":8,"memory_mib":8192},"images":[{"name":"base","digest":"d","resources":{"vcpus":1,"memory_mib":256},"no_root":true}],"networks":["internet"],` +
		`"driver":"d","degraded":["x"],"running":[{"job":` + id0 + `,"attempt":1,"epoch":5,"running":true}],"pool":"default","labels":{"arch":"amd64"},"warm":{"base":1},"templates":{"base":[{"vcpus":1,"memory_mib":256,"nic":true}]},"contract":2}`
	// aResult is what a worker reports.
	aResult = `{"ending":"exited","class":"user","reason":"r","limit":"wall","exit_code":0,"signal":"SIGKILL","steps":[{"name":"0","ending":"exited","exit_code":0,"usage":{"wall_ms":1,"cpu_ms":1.5},` +
		`"stdout":{"text":"out","bytes":3},"stderr":{"base64":"/w==","bytes":1,"truncated":true,"dropped_bytes":7}}],"artifacts":[{"path":"a","size":1,"mode":"0644","sha256":"` + "0a" + `","text":"x"}],` +
		`"usage":{"wall_ms":1,"cpu_ms":1},"phases":{"queued":1,"from_pool":true},"attempt":1,"worker":"w1","machine":"m","template":"t","degraded":["d"],"ended_at":"2026-01-02T03:04:05Z"}`
)

var digest = `"` + strings.Repeat("0a", 32) + `"`

// all is everything that can be asked, tenants' requests first.
var all = []asked{
	{"submit.T", "submit_reply", specs},
	{"enqueue.T", "", specs},
	{"batch.T.submit", "requests#/$defs/BatchReply", []string{
		`{"jobs":[` + specs[0] + `,` + specs[1] + `,` + specs[2] + `]}`,
		`{"id":` + id1 + `,"idempotency_key":"b","atomic":true,"defaults":{"language":"sh","source":"true","labels":{"a":"b"},"run_at":"2026-01-02T03:04:05Z"},"jobs":[{},{"labels":{"c":"d"}},{"priority":3}]}`,
		`{"defaults":{},"jobs":[` + specs[3] + `,` + specs[1] + `,` + specs[0] + `,null]}`,
		`{"defaults":{"language":"sh"},"object":{"name":"n","sha256":` + digest + `}}`,
	}},
	{"get.T", "requests#/$defs/GetReply", []string{`{"id":` + id0 + `}`, `{"id":` + id2 + `}`}},
	{"list.T", "requests#/$defs/ListReply", []string{`{}`, `{"states":["queued","ended"],"batch":` + id1 + `,"limit":2,"before":` + id2 + `}`}},
	{"job.T.I.cancel", "requests#/$defs/CancelReply", []string{`{}`}},
	{"replay.T", "requests#/$defs/ReplayReply", []string{`{"job":` + id0 + `}`, `{"batch":` + id1 + `,"after":{"attempt":0,"seq":1,"at":5},"limit":3,"max_bytes":100}`}},
	{"schedule.T.put", "requests#/$defs/SchedulesReply", []string{
		`{"name":"nightly","cron":"*/5 * * * *","time_zone":"Europe/Berlin","overlap":"skip","spec":` + specs[0] + `}`, `{"name":"often","cron":"@every 90s","paused":true,"overlap":"allow","spec":` + specs[4] + `,"next_at":"2026-01-02T03:04:05Z"}`,
	}},
	{"schedule.T.list", "requests#/$defs/SchedulesReply", []string{`{}`}},
	{"schedule.T.delete", "requests#/$defs/SchedulesReply", []string{`{"name":"nightly"}`}},
	{"batch.T.get", "requests#/$defs/BatchesReply", []string{`{"id":` + id1 + `}`}},
	{"batch.T.list", "requests#/$defs/BatchesReply", []string{`{"limit":1,"before":` + id2 + `}`, `{}`}},
	{"batch.T.cancel", "requests#/$defs/BatchesReply", []string{`{"id":` + id1 + `}`}},
	{"dead.T.redrive", "requests#/$defs/DeadReply", []string{`{"id":` + id0 + `}`}},
	{"dead.T.drop", "requests#/$defs/DeadReply", []string{`{"id":` + id0 + `}`}},
	{"webhook.T." + jobs.WebhookAdd, "requests#/$defs/WebhookReply", []string{anEndpoint, `{"url":"https://example.com/"}`}},
	{"webhook.T." + jobs.WebhookList, "requests#/$defs/WebhookReply", []string{`{}`}},
	{"webhook.T.O", "requests#/$defs/WebhookReply", []string{`{"id":` + id0 + `}`}}, // of one endpoint or delivery
	{"webhook.T." + jobs.WebhookRotate, "requests#/$defs/WebhookReply", []string{`{"id":"callbacks","grace_ms":5,"secret":"whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}`}},
	{"webhook.T." + jobs.WebhookSecret, "requests#/$defs/WebhookReply", []string{`{}`}},
	{"webhook.T." + jobs.WebhookDeliveries, "requests#/$defs/WebhookReply", []string{`{"endpoint":"callbacks","job":` + id0 + `,"states":["pending"],"limit":1,"before":` + id2 + `}`, `{}`}},
	{"webhook.T." + jobs.WebhookReplay, "requests#/$defs/WebhookReply", []string{`{"since":"2026-01-02T03:04:05Z","endpoint":"callbacks"}`, `{"id":` + id0 + `}`}},
	{"object.T.stat", "requests#/$defs/ObjectReply", []string{`{"sha256":` + digest + `,"job":` + id0 + `}`, `{"sha256":` + digest + `}`}},
	{"object.T.put", "requests#/$defs/ObjectReply", []string{`{"sha256":` + digest + `,"size":7,"offset":0}`}},
	{"object.T.get", "requests#/$defs/ObjectReply", []string{`{"sha256":` + digest + `,"offset":3,"max_bytes":2}`}},
	{"fleet.admin.list", "requests#/$defs/FleetReply", []string{`{}`}},
	{"fleet.admin.cordon", "requests#/$defs/FleetReply", []string{`{"worker":"w2"}`}},
	{"fleet.admin.uncordon", "requests#/$defs/FleetReply", []string{`{"worker":"w2"}`}},
	{"fleet.admin.drain", "requests#/$defs/FleetReply", []string{`{"worker":"w2","within_ms":1}`}},
	{"fleet.admin.remove", "requests#/$defs/FleetReply", []string{`{"worker":"w2"}`}},
	{"fleet.heartbeat", "", []string{aBeat}},
	{"fleet.lease", "", []string{`{"worker":"w2","session":1,"slots":3,"free":{"vcpus":8,"memory_mib":8192},"warm":{"base":1},"wait_ms":1}`}},
	{"fleet.report", "", []string{`{"worker":"w2","session":1,"job":` + id0 + `,"attempt":1,"epoch":5,"events":1,"result":` + aResult + `}`}},
	{"fleet.bucket", "", []string{`{"worker":"w2","tenant":"default.tenant"}`}},
	{"fleet.object", "", []string{`{"worker":"w2","tenant":"default.tenant","op":"get","sha256":` + digest + `,"size":1}`}},
}

// tokens are in the place of a subject's last.
var tokens = []string{"x", "A", "é", "\xff", "\x01", "submit", strings.Repeat("a", 300), "019a2b3c-4d5e-7f60-8123-456789abcde0", "019a2b3c-4d5e-7f60-8123-456789abcde1"}
