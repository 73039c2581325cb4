package docs_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/jobs/schema"
	"github.com/paddockvm/paddock/test/harness"
)

// TestRequests asks a Paddock what docs/requests.md says can be asked, as a client does that knows nothing but that and its schema, and holds
// the replies against both: no field comes that they do not name.
func TestRequests(t *testing.T) {
	port := fmt.Sprint(harness.FreePort(t)) // nobody listens there
	p := paddock(t, "--webhook-allow", "127.0.0.0/8", "--webhook-ports", port)
	nc, err := nats.Connect(p.URL, nats.Timeout(loaded))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	a := &asker{T: t, nc: nc, rows: rows(t), schemas: map[string]*jsonschema.Schema{}}

	spec := `{"language":"sh","source":"cat","stdin_stream":true}`
	job := a.raw("submit.default", spec)["job"].(map[string]any)["id"].(string)
	byID := func(id any) string { return fmt.Sprintf(`{"id":%q}`, id) }
	a.ok("get.default", byID(job))
	a.ok("list.default", `{"states":["queued","leased","running"],"limit":10}`)
	a.until("the job runs", func() bool {
		return strings.Contains(fmt.Sprint(a.ok("replay.default", `{"job":"`+job+`","limit":100}`)["events"]), "state:running")
	})
	a.ok("job.default."+job+".stdin", `{"text":"hello\n"}`)
	a.ok("job.default."+job+".stdin", `{"eof":true}`)
	a.until("the job ends", func() bool {
		return a.ok("replay.default", `{"job":"`+job+`","after":{"attempt":0,"seq":0}}`)["ended"] == true
	})
	a.ok("job.default."+job+".cancel", "")
	a.refused("dead.default.redrive", byID(job), jobs.CodeConflict)
	a.refused("dead.default.drop", byID(job), jobs.CodeConflict)

	batch := a.ok("batch.default.submit", `{"defaults":{"language":"sh","source":"sleep 60"},"jobs":[{"labels":{"n":"1"}},{}]}`)["batch"].(map[string]any)["id"]
	a.ok("batch.default.get", byID(batch))
	a.ok("batch.default.list", `{"limit":1}`)
	a.ok("batch.default.cancel", byID(batch))

	a.ok("schedule.default.put", `{"name":"nightly","cron":"0 3 * * *","time_zone":"Europe/Berlin","spec":{"language":"sh","source":"true"}}`)
	if l := a.ok("schedule.default.list", "")["schedules"].([]any); len(l) != 1 || l[0].(map[string]any)["next_at"] == nil {
		t.Errorf("the schedules are %v", l)
	}
	a.ok("schedule.default.delete", `{"name":"nightly"}`)

	sum := sha256.Sum256([]byte("content"))
	digest := hex.EncodeToString(sum[:])
	a.piece("object.default.put", `{"sha256":"`+digest+`","size":7,"offset":0}`, "content")
	a.until("the object is stored", func() bool { // which the answer to its last piece does not wait for long
		return a.piece("object.default.put", `{"sha256":"`+digest+`","size":7,"offset":7}`, "")["stored"] == true
	})
	a.ok("object.default.stat", `{"sha256":"`+digest+`"}`)
	a.ok("object.default.get", `{"sha256":"`+digest+`","offset":3,"max_bytes":2}`)

	endpoint := a.ok("webhook.default.add", `{"url":"https://127.0.0.1:`+port+`/","events":["job.ended"],"description":"mine"}`)["endpoint"].(map[string]any)["id"]
	for _, what := range []string{"get", "disable", "enable"} {
		a.ok("webhook.default."+what, byID(endpoint))
	}
	a.ok("webhook.default.list", "")
	a.ok("webhook.default.rotate", fmt.Sprintf(`{"id":%q,"grace_ms":0}`, endpoint))
	a.ok("webhook.default.secret", "")
	delivery := a.ok("webhook.default.test", byID(endpoint))["delivery"].(map[string]any)["id"]
	a.until("the delivery is tried", func() bool {
		return a.ok("webhook.default.delivery", byID(delivery))["delivery"].(map[string]any)["tries"] != nil
	})
	a.ok("webhook.default.deliveries", fmt.Sprintf(`{"endpoint":%q,"states":["pending"],"limit":10}`, endpoint))
	a.ok("webhook.default.replay", byID(delivery))
	a.ok("webhook.default.remove", byID(endpoint))

	worker := a.ok("fleet.admin.list", "")["workers"].([]any)[0].(map[string]any)["name"]
	for _, what := range []string{"cordon", "uncordon"} {
		a.ok("fleet.admin."+what, fmt.Sprintf(`{"worker":%q}`, worker))
	}
	a.ok("fleet.admin.drain", fmt.Sprintf(`{"worker":%q,"within_ms":60000}`, worker))
	a.refused("fleet.admin.remove", `{"worker":"nobody"}`, jobs.CodeNotFound)

	for subject, r := range a.rows {
		onMachine := strings.HasSuffix(subject, ".snapshot") || strings.HasSuffix(subject, ".resize") // a process is none that can be kept or grow
		if r.request != "" && !onMachine && !r.tried {
			t.Errorf("%s is not tried", subject)
		}
	}
}

// row is one of the table of subjects in docs/requests.md.
type row struct {
	request, reply string   // types; empty for none, and for what requests.json does not define
	may, says      []string // the fields that are named; none where any may come
	tried          bool
}

func rows(t *testing.T) map[string]*row {
	t.Helper()
	m := map[string]*row{}
	kind, field := regexp.MustCompile(`\[(\w+)\]\(#`), regexp.MustCompile("`(\\w+)`")
	cell := func(s string) (of string, fields []string) {
		if k := kind.FindStringSubmatch(s); k != nil {
			of = k[1]
		}
		for _, f := range field.FindAllStringSubmatch(s, -1) {
			fields = append(fields, f[1])
		}
		return of, fields
	}
	for _, l := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.+) \\| (.+) \\|$").FindAllStringSubmatch(documents(t)["docs/requests.md"], -1) {
		if !strings.Contains(l[1], ".") { // a field of a type
			continue
		}
		r := &row{}
		r.request, r.may = cell(l[2])
		if r.reply, r.says = cell(l[3]); r.reply != "" {
			if l[2] == "empty" {
				r.request = "empty"
			}
			m[l[1]] = r
		}
	}
	if len(m) < 30 {
		t.Fatalf("docs/requests.md has %d requests with replies", len(m))
	}
	return m
}

// asker is a client that looks at what it asks and is answered.
type asker struct {
	*testing.T
	nc      *nats.Conn
	rows    map[string]*row
	schemas map[string]*jsonschema.Schema
}

// loaded bounds an answer on a machine that is loaded, where clients have less patience.
const loaded = time.Minute

// raw asks without looking.
func (a *asker) raw(subject, body string) map[string]any {
	a.Helper()
	m, err := a.nc.Request("paddock.v1."+subject, []byte(body), loaded)
	if err != nil {
		a.Fatalf("%s: %v", subject, err)
	}
	return a.object(subject, m.Data)
}

func (a *asker) object(subject string, data []byte) (o map[string]any) {
	a.Helper()
	if err := json.Unmarshal(data, &o); err != nil {
		a.Fatalf("%s: %v: %.200q", subject, err, data)
	}
	return o
}

// ok asks what is not to fail, and gives the reply.
func (a *asker) ok(subject, body string) map[string]any {
	a.Helper()
	return a.send(subject, body, &nats.Msg{Data: []byte(body)}, "")
}

// piece sends a piece of an object, with the request in the header.
func (a *asker) piece(subject, request, data string) map[string]any {
	a.Helper()
	return a.send(subject, request, &nats.Msg{Header: nats.Header{jobs.ObjectHeader: {request}}, Data: []byte(data)}, "")
}

// refused asks what is to fail with a code.
func (a *asker) refused(subject, body string, code jobs.Code) {
	a.Helper()
	a.send(subject, body, &nats.Msg{Data: []byte(body)}, code)
}

func (a *asker) send(subject, request string, m *nats.Msg, code jobs.Code) map[string]any {
	a.Helper()
	r := a.row(subject)
	r.tried = true
	if request != "" {
		a.fits(subject, r.request, []byte(request), r.may)
	}
	m.Subject = "paddock.v1." + subject
	answer, err := a.nc.RequestMsg(m, loaded)
	if err != nil {
		a.Fatalf("%s: %v", subject, err)
	}
	data := answer.Data
	if h := answer.Header.Get(jobs.ObjectHeader); h != "" {
		data = []byte(h)
	}
	o := a.fits(subject, r.reply, data, r.says)
	failed, _ := o["error"].(map[string]any)
	switch {
	case code == "" && (failed != nil || o["warnings"] != nil):
		a.Fatalf("%s %s: %s", subject, request, data)
	case code != "" && failed["code"] != string(code):
		a.Errorf("%s %s: %s, want %s", subject, request, data, code)
	case code == "" && len(r.says) > 0 && o[r.says[0]] == nil:
		a.Errorf("%s: the reply has no %s: %s", subject, r.says[0], data)
	}
	return o
}

// row finds what the document says of a subject.
func (a *asker) row(subject string) *row {
	a.Helper()
	t := strings.Split(subject, ".")
	if t[0] != "fleet" {
		t[1] = "<tenant>"
	}
	if t[0] == "job" {
		t[2] = "<job>"
	}
	r := a.rows[strings.Join(t, ".")]
	if r == nil {
		a.Fatalf("docs/requests.md says nothing of %s", subject)
	}
	return r
}

// fits holds a message against its type in requests.json, with no field that is not there, and against the fields that may come.
func (a *asker) fits(subject, of string, data []byte, may []string) map[string]any {
	a.Helper()
	s := a.schemas[of]
	if s == nil {
		s = closed(a.T, of)
		a.schemas[of] = s
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err == nil {
		err = s.Validate(v)
	}
	if err != nil {
		a.Fatalf("%s: this is no %s: %v\n%s", subject, of, err, data)
	}
	o := a.object(subject, data)
	for key := range o {
		if len(may) > 0 && key != "error" && key != "warnings" && !slices.Contains(may, key) {
			a.Errorf("%s: docs/requests.md does not name %s: %s", subject, key, data)
		}
	}
	return o
}

// closed is a type of requests.json whose objects have no other fields than those that it names.
func closed(t *testing.T, of string) *jsonschema.Schema {
	t.Helper()
	b, err := schema.Files.ReadFile("requests.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range doc.(map[string]any)["$defs"].(map[string]any) {
		if d := d.(map[string]any); d["properties"] != nil {
			d["additionalProperties"] = false
		}
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("requests", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("requests#/$defs/" + of)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// until waits for what is to come.
func (a *asker) until(what string, is func() bool) {
	a.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			a.Fatalf("not within a minute: %s", what)
		}
	}
}
