package schema_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/invopop/jsonschema"

	"github.com/paddockvm/paddock/jobs"
)

var update = flag.Bool("update", false, "write the schemas, docs/jobs.md and docs/requests.md")

// roots are the messages that clients write and read.
var roots = []struct {
	file string
	v    any
	open bool // unknown properties are to be passed over: a newer Paddock may say more
}{
	{"spec", jobs.Spec{}, false},
	{"result", jobs.Result{}, true},
	{"event", jobs.Event{}, true},
	{"job", jobs.Job{}, true},
	{"submit_reply", jobs.SubmitReply{}, true},
	{"error", jobs.Error{}, true},
}

// requests are what is asked and answered besides, and what webhooks are told. The schema requests.json defines each of them, by its name.
type requests struct {
	GetRequest        jobs.GetRequest
	GetReply          jobs.GetReply
	ListRequest       jobs.ListRequest
	ListReply         jobs.ListReply
	ReplayRequest     jobs.ReplayRequest
	ReplayReply       jobs.ReplayReply
	CancelReply       jobs.CancelReply
	StdinChunk        jobs.StdinChunk
	StdinReply        jobs.StdinReply
	SnapshotRequest   jobs.SnapshotRequest
	SnapshotReply     jobs.SnapshotReply
	ResizeRequest     jobs.ResizeRequest
	ResizeReply       jobs.ResizeReply
	BatchRequest      jobs.BatchRequest
	BatchReply        jobs.BatchReply
	BatchQuery        jobs.BatchQuery
	BatchesReply      jobs.BatchesReply
	Schedule          jobs.Schedule
	ScheduleQuery     jobs.ScheduleQuery
	SchedulesReply    jobs.SchedulesReply
	DeadRequest       jobs.DeadRequest
	DeadReply         jobs.DeadReply
	ObjectRequest     jobs.ObjectRequest
	ObjectReply       jobs.ObjectReply
	EndpointRequest   jobs.EndpointRequest
	EndpointID        jobs.EndpointID
	RotateRequest     jobs.RotateRequest
	DeliveriesRequest jobs.DeliveriesRequest
	DeliveryID        jobs.DeliveryID
	RedeliverRequest  jobs.RedeliverRequest
	WebhookReply      jobs.WebhookReply
	Hook              jobs.Hook
	FleetRequest      jobs.FleetRequest
	FleetReply        jobs.FleetReply
}

// enums are the values of the contract's string types.
var enums = map[reflect.Type][]any{
	reflect.TypeFor[jobs.Ending](): {
		jobs.Exited, jobs.Signaled, jobs.TimeLimit, jobs.MemoryLimit, jobs.OutputLimit, jobs.PIDsLimit, jobs.DiskLimit, jobs.FileLimit,
		jobs.VMExited, jobs.StartFailed, jobs.FileFailed, jobs.CompileError, jobs.WrongAnswer, jobs.Canceled, jobs.Expired, jobs.Rejected, jobs.DependencyFailed,
		jobs.WorkerLost, jobs.VMFailed, jobs.AgentLost, jobs.ImageFailed, jobs.HostResources,
	},
	reflect.TypeFor[jobs.Class]():     {jobs.ClassUser, jobs.ClassPolicy, jobs.ClassInfra},
	reflect.TypeFor[jobs.State]():     {jobs.StateQueued, jobs.StateLeased, jobs.StateRunning, jobs.StateEnded, jobs.StateDead},
	reflect.TypeFor[jobs.EventType](): {jobs.EventState, jobs.EventOutput, jobs.EventStep, jobs.EventPorts, jobs.EventResult, jobs.EventLost, jobs.EventBatch},
	reflect.TypeFor[jobs.Code](): {
		jobs.CodeInvalid, jobs.CodeUnsupported, jobs.CodeConflict, jobs.CodeNotFound, jobs.CodeForbidden, jobs.CodeTooLarge, jobs.CodeQuota,
		jobs.CodeQueueFull, jobs.CodeNoCapacity, jobs.CodeUnavailable, jobs.CodeInternal,
	},
	reflect.TypeFor[jobs.DeliveryState](): {jobs.DeliveryPending, jobs.DeliveryDelivered, jobs.DeliveryFailed},
}

func between(least, most int64) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		s.Minimum, s.Maximum = json.Number(fmt.Sprint(least)), json.Number(fmt.Sprint(most))
	}
}

func pattern(p string) func(*jsonschema.Schema) { return func(s *jsonschema.Schema) { s.Pattern = p } }

func oneOf(values ...string) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		for _, v := range values {
			s.Enum = append(s.Enum, v)
		}
	}
}

func atMost(n uint64) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		if s.Type == "array" {
			s.MaxItems = &n
		} else {
			s.MaxProperties = &n
		}
	}
}

// ports are numbers of 16 bits, each once.
func ports(s *jsonschema.Schema) {
	atMost(16)(s)
	if s.Items != nil { // TestBounds asks of no list
		between(1, 65535)(s.Items)
	}
	s.UniqueItems = true
}

// ids are of jobs, each once.
func ids(s *jsonschema.Schema) {
	atMost(jobs.MaxDependsOn)(s)
	if s.Items != nil {
		s.Items.Pattern = idPattern
	}
	s.UniqueItems = true
}

const (
	idPattern = "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
	day       = 24 * 3600 * 1000 // ms
	sha256    = "^[0-9a-f]{64}$"
	// tera bounds limits in bytes.
	tera = 1 << 40
)

// rules are what the fields of a spec may be. TestBounds and TestDecodeAgrees hold them against jobs.Decode.
var rules = map[string]func(*jsonschema.Schema){
	"Spec.version":         oneOf("", jobs.Version),
	"Spec.id":              pattern("^([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})?$"),
	"Spec.image":           pattern("^([a-z0-9][a-z0-9._-]{0,62}|snapshot:[A-Za-z0-9][A-Za-z0-9_-]{0,62}/[a-z0-9][a-z0-9._-]{0,62})?$"),
	"Spec.language":        oneOf(append([]string{""}, jobs.Languages()...)...),
	"Spec.args":            atMost(jobs.MaxArgs),
	"Spec.steps":           atMost(jobs.MaxSteps),
	"Spec.files":           atMost(jobs.MaxFiles),
	"Spec.artifacts":       atMost(jobs.MaxArtifacts),
	"Spec.labels":          atMost(32),
	"Spec.callbacks":       atMost(8),
	"Spec.priority":        between(0, 9),
	"Spec.queue_ttl_ms":    between(0, 7*day),
	"Spec.infra_retries":   between(0, 10),
	"Spec.depends_on":      ids,
	"Spec.pool":            pattern("^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?$"),
	"Spec.requires":        atMost(16),
	"Concurrency.limit":    between(0, 10_000),
	"Retry.attempts":       between(0, 10),
	"Retry.rules":          atMost(5),
	"RetryRule.exit_codes": atMost(32),
	"RetryRule.action":     oneOf(jobs.ActionRetry, jobs.ActionFail),
	"Step.name":            pattern("^([A-Za-z0-9][A-Za-z0-9 ._-]{0,62})?$"),
	"Step.args":            atMost(jobs.MaxArgs),
	"Step.env":             atMost(jobs.MaxEnv),
	"Step.user":            oneOf("", "sandbox", "root"),
	"File.mode":            pattern("^0*[0-7]{0,3}$"),
	"ObjectRef.sha256":     pattern(sha256),
	"Artifact.max_bytes":   between(0, 1<<30),
	"Limits.wall_ms":       between(0, day),
	"Limits.cpu_ms":        between(0, day),
	"Limits.memory_bytes":  between(0, tera),
	"Limits.pids":          between(0, 1<<16),
	"Limits.output_bytes":  between(0, 1<<30),
	"Limits.file_bytes":    between(0, tera),
	"Limits.disk_bytes":    between(0, tera),
	"Limits.open_files":    between(0, 1<<20),
	"Resources.vcpus":      between(0, 256),
	"Resources.memory_mib": between(0, 1<<20),
	"Network.policy":       oneOf("", jobs.NetworkNone, jobs.NetworkInternet, jobs.NetworkAllowlist),
	"Network.allow":        atMost(256),
	"Network.ports":        ports,

	"ListRequest.limit":        between(0, 1000),
	"ReplayRequest.limit":      between(0, jobs.MaxReplayEvents),
	"BatchQuery.limit":         between(0, 1000),
	"BatchRequest.jobs":        atMost(jobs.MaxBatch),
	"ResizeRequest.vcpus":      between(0, 256),
	"ResizeRequest.memory_mib": between(0, 1<<20),
	"SnapshotRequest.name":     pattern("^([a-z0-9][a-z0-9._-]{0,62})?$"),
	"SnapshotRequest.tags":     atMost(16),
	"Schedule.name":            pattern("^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"),
	"Schedule.overlap":         oneOf("", jobs.OverlapSkip, jobs.OverlapAllow),
	"ObjectRequest.sha256":     pattern(sha256),
	"ObjectRequest.offset":     between(0, jobs.MaxObjectBytes),
	"EndpointRequest.format":   oneOf("", jobs.FormatStandard, jobs.FormatCloudEvents),
	"RotateRequest.grace_ms":   between(0, 30*day),
	"DeliveriesRequest.limit":  between(0, 1000),
	"FleetRequest.within_ms":   between(0, 7*day),
	"WorkerInfo.capacity":      func(s *jsonschema.Schema) { s.Ref = "#/$defs/Capacity" },
	"WorkerInfo.state":         oneOf(jobs.FleetReady, jobs.FleetCordoned, jobs.FleetDraining, jobs.FleetDrained, jobs.FleetLost),
}

// defineRequests gives the schema that defines all of requests. What is passed over where it is not known may come with each.
func defineRequests(t *testing.T) *jsonschema.Schema {
	t.Helper()
	s := generate(t, requests{}, true)
	s.Title, s.Description = "Requests", "What is asked and answered over NATS, and what webhooks are told: each in $defs, by its name."
	s.Type, s.Properties, s.Required = "", nil, nil
	s.Definitions["Capacity"] = capacity(s.Definitions["Resources"])
	return s
}

// capacity is the size of a host: that of a machine without the bounds that a spec has.
func capacity(resources *jsonschema.Schema) *jsonschema.Schema {
	c := *resources
	c.Description, c.Properties = "Capacity is the size of a worker's host, which may be more than one machine can be.", jsonschema.NewProperties()
	c.Properties.Set("vcpus", &jsonschema.Schema{Type: "integer", Description: "how many virtual processors."})
	c.Properties.Set("memory_mib", &jsonschema.Schema{Type: "integer", Description: "the memory in MiB."})
	return &c
}

// generate reflects a message of the contract.
func generate(t *testing.T, v any, open bool) *jsonschema.Schema {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous: true, AllowAdditionalProperties: open, ExpandedStruct: true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			if values, ok := enums[t]; ok {
				return &jsonschema.Schema{Type: "string", Enum: values}
			}
			if t == reflect.TypeFor[json.RawMessage]() { // of a batch
				return &jsonschema.Schema{Ref: "#/$defs/Spec"}
			}
			return nil
		},
	}
	t.Chdir(filepath.Join(root(t)))
	if err := r.AddGoComments("github.com/paddockvm/paddock", "./jobs", jsonschema.WithFullComment()); err != nil {
		t.Fatal(err)
	}
	for k, c := range r.CommentMap {
		r.CommentMap[k] = strings.Join(strings.Fields(c), " ")
	}
	name := reflect.TypeOf(v).Name()
	s := r.Reflect(v)
	s.Title = name
	s.Description = r.CommentMap["github.com/paddockvm/paddock/jobs."+name]
	constrain(name, s)
	for name, d := range s.Definitions {
		constrain(name, d)
	}
	return s
}

func constrain(name string, s *jsonschema.Schema) {
	if s.Properties == nil {
		return
	}
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		p.Value.Description = said(p.Key, p.Value.Description)
		if rule := rules[name+"."+p.Key]; rule != nil {
			rule(p.Value)
		}
	}
}

// said turns a field's comment into words about its property: "WallMS is the time" is "the time" of wall_ms.
func said(key, comment string) string {
	first, rest, _ := strings.Cut(comment, " ")
	if !strings.EqualFold(first, strings.ReplaceAll(key, "_", "")) && !strings.EqualFold(first, strings.ReplaceAll(key, "_", "")+"ms") {
		return comment
	}
	for _, verb := range []string{"is ", "are "} {
		if after, ok := strings.CutPrefix(rest, verb); ok {
			return after
		}
	}
	return key + " " + rest
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

func TestSchemasAreCurrent(t *testing.T) {
	for _, r := range roots {
		t.Run(r.file, func(t *testing.T) {
			b, err := json.MarshalIndent(generate(t, r.v, r.open), "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			same(t, filepath.Join("jobs", "schema", r.file+".json"), string(b)+"\n")
		})
	}
	t.Run("requests", func(t *testing.T) {
		b, err := json.MarshalIndent(defineRequests(t), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		same(t, filepath.Join("jobs", "schema", "requests.json"), string(b)+"\n")
	})
}

// TestDocsAreCurrent holds the tables of docs/jobs.md and docs/requests.md, one for each type, against the code.
func TestDocsAreCurrent(t *testing.T) {
	types := map[string]*jsonschema.Schema{}
	for _, r := range roots {
		s := generate(t, r.v, r.open)
		types[s.Title] = s
		maps.Copy(types, s.Definitions)
	}
	for name, s := range defineRequests(t).Definitions {
		if types[name] == nil {
			types[name] = s
		}
	}
	docs, home := map[string]string{}, map[string]string{}
	for _, name := range []string{"jobs.md", "requests.md"} {
		b, err := os.ReadFile(filepath.Join("docs", name))
		if err != nil {
			t.Fatal(err)
		}
		docs[name] = string(b)
		for _, m := range regexp.MustCompile("<!-- fields of (.*) -->").FindAllStringSubmatch(docs[name], -1) {
			if s := types[m[1]]; home[m[1]] != "" || s == nil || s.Properties == nil {
				t.Fatalf("%s: fields of %s: no such type, or they are told of twice", name, m[1])
			}
			home[m[1]] = name
		}
	}
	for name, s := range types {
		if s.Properties != nil && home[name] == "" {
			t.Errorf("no document has the fields of %s", name)
		}
	}
	for doc, text := range docs {
		var out strings.Builder
		for rest := text; ; {
			before, after, found := strings.Cut(rest, "<!-- fields of ")
			out.WriteString(before)
			if !found {
				break
			}
			name, after, _ := strings.Cut(after, " -->\n")
			_, after, found = strings.Cut(after, "<!-- end -->\n")
			if !found {
				t.Fatalf("%s: fields of %s: no end", doc, name)
			}
			out.WriteString("<!-- fields of " + name + " -->\n" + table(t, name, types[name], func(other string) string {
				if home[other] == doc {
					return "#" + strings.ToLower(other)
				}
				return home[other] + "#" + strings.ToLower(other)
			}) + "<!-- end -->\n")
			rest = after
		}
		same(t, filepath.Join("docs", doc), out.String())
	}
}

// TestSubjectsAreDocumented holds the table of docs/requests.md against the subjects in package jobs, and what its comments say is asked on them.
func TestSubjectsAreDocumented(t *testing.T) {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	source := read("jobs/subjects.go")
	asked := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^// (\w+)Subject takes what .*: (\w+(?:, \w+)+)\.$`).FindAllStringSubmatch(source, -1) {
		asked[m[1]] = strings.Split(m[2], ", ")
	}
	for _, m := range regexp.MustCompile(`(?m)^\tWebhook\w+\s+= "(\w+)"`).FindAllStringSubmatch(read("jobs/webhook_request.go"), -1) {
		asked["Webhook"] = append(asked["Webhook"], m[1])
	}
	want := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+)Subjects\s+= prefix \+ "(.*)"`).FindAllStringSubmatch(source, -1) {
		name, subject := m[1], strings.Replace(m[2], "*", "<tenant>", 1)
		switch {
		case name == "Fleet":
			subject = m[2]
		case strings.HasPrefix(subject, "job."):
			subject = strings.Replace(subject, "*", "<job>", 1)
		case strings.HasSuffix(subject, ".event"):
			subject = strings.Replace(subject, "*", "<batch>", 1)
		}
		if !strings.Contains(subject, "*") {
			want[subject] = true
			continue
		}
		if len(asked[name]) == 0 {
			t.Errorf("jobs/subjects.go does not say what is asked on %s", subject)
		}
		for _, what := range asked[name] {
			want[strings.Replace(subject, "*", what, 1)] = true
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .+ \\| .+ \\|$").FindAllStringSubmatch(strings.Split(read("docs/requests.md"), "\n## ")[1], -1) {
		if !want[m[1]] {
			t.Errorf("docs/requests.md has a subject %s, which there is not, or has it twice", m[1])
		}
		delete(want, m[1])
	}
	if len(want) > 0 {
		t.Errorf("docs/requests.md says nothing of %q", slices.Sorted(maps.Keys(want)))
	}
}

// TestCodesAreDocumented holds the codes' rows in docs/jobs.md against the codes that there are.
func TestCodesAreDocumented(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root(t), "docs", "jobs.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(b), "\n## Error\n")
	part, _, _ = strings.Cut(part, "<!-- fields of Error -->")
	for _, code := range enums[reflect.TypeFor[jobs.Code]()] {
		if n := strings.Count(part, fmt.Sprintf("\n| `%v` |", code)); n != 1 {
			t.Errorf("docs/jobs.md has %d rows of the code %v", n, code)
		}
	}
}

// table documents a type's fields; link is where another type is documented.
func table(t *testing.T, of string, s *jsonschema.Schema, link func(name string) string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("| field | type | |\n|---|---|---|\n")
	for p := s.Properties.Oldest(); p != nil; p = p.Next() {
		name := "`" + p.Key + "`"
		if slices.Contains(s.Required, p.Key) {
			name = "**" + name + "**"
		}
		if p.Value.Description == "" && p.Value.Ref == "" {
			t.Errorf("%s.%s: no comment says what it is", of, p.Key)
		}
		said := strings.ReplaceAll(p.Value.Description, "|", "\\|")
		if p.Value.Maximum != "" {
			said = strings.TrimSpace(said + fmt.Sprintf(" (%s to %s)", p.Value.Minimum, p.Value.Maximum))
		}
		if n := p.Value.MaxItems; n != nil {
			said = strings.TrimSpace(said + fmt.Sprintf(" (at most %d)", *n))
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, typeName(p.Value, link), said)
	}
	return b.String()
}

func typeName(s *jsonschema.Schema, link func(name string) string) string {
	switch {
	case s.Ref != "":
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		return "[" + name + "](" + link(name) + ")"
	case s.Type == "array":
		return typeName(s.Items, link) + "[]"
	case s.Type == "object":
		return "object of " + typeName(s.AdditionalProperties, link)
	case len(s.Enum) > 0:
		var l []string
		for _, v := range s.Enum {
			if fmt.Sprint(v) != "" {
				l = append(l, fmt.Sprintf("`%v`", v))
			}
		}
		return strings.Join(l, " ")
	case s.ContentEncoding != "":
		return s.ContentEncoding
	case s.Format != "":
		return s.Format
	}
	return s.Type
}

// same compares a file under the repository's root with what it should be, or writes it.
func same(t *testing.T, path, want string) {
	t.Helper()
	t.Chdir(root(t))
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(got), want); d != "" {
		t.Errorf("%s is not current; go test ./jobs/schema -update writes it (-file +code):\n%s", path, d)
	}
}

// bounds gives the bounds that a rule sets, if it is one for numbers.
func bounds(rule func(*jsonschema.Schema)) (least, most int64, ok bool) {
	s := &jsonschema.Schema{Type: "array"}
	if rule(s); s.Maximum == "" {
		return 0, 0, false
	}
	least, err := s.Minimum.Int64()
	if err != nil {
		return 0, 0, false
	}
	most, err = s.Maximum.Int64()
	return least, most, err == nil
}
