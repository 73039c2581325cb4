package schema_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/jobs/schema"
)

// compile gives a schema, or one that a file defines: "requests#/$defs/GetReply".
func compile(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	file, _, _ := strings.Cut(name, "#")
	b, err := schema.Files.ReadFile(file + ".json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(file, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fits(t *testing.T, s *jsonschema.Schema, body string) error {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return s.Validate(v)
}

// decodes tells whether Decode takes a spec as it is, unknown fields included.
func decodes(body string) error {
	_, _, err := jobs.Decode([]byte(body), jobs.Strict)
	return err
}

func TestDecodeAgrees(t *testing.T) {
	s := compile(t, "spec")
	for _, body := range []string{
		`{"language":"python","source":"print(1)"}`,
		`{"image":"snapshot:a_Team/warm-1","steps":[{"shell":"true"}]}`,
		`{"version":"v1","id":"01939d1c-7a6b-7c3d-8e4f-0123456789ab","idempotency_key":"k","image":"base","steps":[{"shell":"true"}]}`,
		`{"image":"base","steps":[{"name":"a b","cmd":"ls","args":["-l"],"env":{"A":"b"},"cwd":"/tmp","stdin":"x","user":"root","limits":{"wall_ms":5}}],
		 "files":[{"path":"a","text":"b","mode":"0755"},{"path":"d","mode":"0000000755"},{"path":"/b","base64":"YQ=="},{"path":"c","object":{"name":"n","sha256":"` + strings.Repeat("0a", 32) + `"}}],
		 "artifacts":[{"path":"*.txt","max_bytes":5,"optional":true}],"limits":{"disk_bytes":1048576},"resources":{"vcpus":1,"memory_mib":256},
		 "headroom":{"vcpus":4,"memory_mib":512},"network":{"policy":"allowlist","allow":["10.0.0.0/8","example.com"],"ipv6":true,"ports":[1,65535]},"priority":0,"queue_ttl_ms":1,"infra_retries":0,"labels":{"a":"b"},
		 "callbacks":[{"url":"https://example.com/x","events":["job.running","job.ended"]}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"run_at":"2026-01-02T03:04:05+01:00","depends_on":["01939d1c-7a6b-7c3d-8e4f-0123456789ab"],
		 "concurrency":{"key":"a b","limit":3},"pool":"gpu","requires":{"arch":"amd64","region":"eu/1"},
		 "retry":{"attempts":3,"rules":[{"endings":["time_limit"],"exit_codes":[75],"action":"retry"},{"action":"fail"}]}}`,
		`{"language":"bash","source":"cat","stdin_stream":true}`,
	} {
		if err := fits(t, s, body); err != nil {
			t.Errorf("schema refuses %s: %v", body, err)
		}
		if err := decodes(body); err != nil {
			t.Errorf("Decode refuses %s: %v", body, err)
		}
	}
	for _, body := range []string{
		`{"image":7,"steps":[{"shell":"true"}]}`,
		`{"image":"Base","steps":[{"shell":"true"}]}`,
		`{"image":"snapshot:warm","steps":[{"shell":"true"}]}`,
		`{"image":"base","steps":[{"shell":"true","user":"admin"}]}`,
		`{"image":"base","steps":[{"shell":"true","name":"/"}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"network":{"policy":"lan"}}`,
		`{"image":"base","steps":[{"shell":"true"}],"network":{"ports":[65536]}}`,
		`{"image":"base","steps":[{"shell":"true"}],"network":{"ports":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}}`,
		`{"image":"base","steps":[{"shell":"true"}],"files":[{"text":"no path"}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"files":[{"path":"a","mode":"9"}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"files":[{"path":"a","mode":"1000"}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"files":[{"path":"a","object":{"name":"n","sha256":"x"}}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"artifacts":[{}]}`,
		`{"image":"base","steps":[{"shell":"true"}],"limits":{"wall_ms":"5"}}`,
		`{"image":"base","steps":[{"shell":"true"}],"limits":{"wall_ms":1.5}}`,
		`{"image":"base","steps":[{"shell":"true"}],"limits":{"wal_ms":5}}`,
		`{"image":"base","steps":[{"shell":"true"}],"labels":{"a":1}}`,
		`{"image":"base","steps":[{"shell":"true"}],"run_at":5}`,
		`{"image":"base","steps":[{"shell":"true"}],"depends_on":["job-1"]}`,
		`{"image":"base","steps":[{"shell":"true"}],"depends_on":["01939d1c-7a6b-7c3d-8e4f-0123456789ab","01939d1c-7a6b-7c3d-8e4f-0123456789ab"]}`,
		`{"image":"base","steps":[{"shell":"true"}],"concurrency":{"key":"a","limit":-1}}`,
		`{"image":"base","steps":[{"shell":"true"}],"pool":"a b"}`,
		`{"image":"base","steps":[{"shell":"true"}],"retry":{"attempts":11}}`,
		`{"image":"base","steps":[{"shell":"true"}],"retry":{"rules":[{"action":"again"}]}}`,
		`{"image":"base","steps":[{"shell":"true"}],"retry":{"rules":[{"endings":["lost"],"action":"fail"}]}}`,
		`{"language":"cobol","source":"x"}`,
		`{"version":"v2","language":"sh","source":"x"}`,
		`{"id":"7","language":"sh","source":"x"}`,
	} {
		if fits(t, s, body) == nil {
			t.Errorf("schema takes %s", body)
		}
		if decodes(body) == nil {
			t.Errorf("Decode takes %s", body)
		}
	}
}

// TestBounds holds each number's bounds in the schema against what Decode takes.
func TestBounds(t *testing.T) {
	for name, rule := range rules {
		at, field, _ := strings.Cut(name, ".")
		wrap, ok := map[string]string{
			"Spec": `"%s":%d`, "Limits": `"limits":{"%s":%d}`, "Resources": `"resources":{"%s":%d}`, "Artifact": `"artifacts":[{"path":"a","%s":%d}]`,
			"Concurrency": `"concurrency":{"key":"k","%s":%d}`, "Retry": `"retry":{"%s":%d}`,
		}[at]
		least, most, numeric := bounds(rule)
		if !ok || !numeric {
			continue
		}
		for v, good := range map[int64]bool{least: true, most: true, least - 1: false, most + 1: false} {
			body := fmt.Sprintf(`{"image":"base","steps":[{"shell":"true"}],`+wrap+`}`, field, v)
			err := decodes(body)
			if e, typed := errors.AsType[*jobs.Error](err); (err == nil) != good || err != nil && (!typed || !strings.HasSuffix(e.Faults[0].Path, field)) {
				t.Errorf("%s = %d: %v", name, v, err)
			}
		}
	}
}

// TestRequestBounds holds each number's bounds in requests.json against what DecodeRequest takes.
func TestRequestBounds(t *testing.T) {
	id := jobs.NewID()
	for name, tt := range map[string]struct {
		rest   string // what such a request needs besides
		decode func(body []byte) ([]string, error)
	}{
		"ReplayRequest":     {`"job":"` + id + `"`, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.ReplayRequest{}) }},
		"BatchQuery":        {`"id":"` + id + `"`, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.BatchQuery{}) }},
		"ResizeRequest":     {``, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.ResizeRequest{}) }},
		"ObjectRequest":     {`"sha256":"` + strings.Repeat("0", 64) + `"`, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.ObjectRequest{}) }},
		"RotateRequest":     {`"id":"callbacks"`, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.RotateRequest{}) }},
		"DeliveriesRequest": {``, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.DeliveriesRequest{}) }},
		"FleetRequest":      {``, func(b []byte) ([]string, error) { return jobs.DecodeRequest(b, &jobs.FleetRequest{}) }},
	} {
		tried := 0
		for rule, set := range rules {
			of, field, _ := strings.Cut(rule, ".")
			least, most, numeric := bounds(set)
			if of != name || !numeric {
				continue
			}
			tried++
			for v, good := range map[int64]bool{least: name != "ResizeRequest", most: true, least - 1: false, most + 1: false} { // a resize to nothing is none
				body := fmt.Sprintf(`{"%s":%d`, field, v)
				if tt.rest != "" {
					body += "," + tt.rest
				}
				if _, err := tt.decode([]byte(body + "}")); (err == nil) != good {
					t.Errorf("%s = %d: %v", rule, v, err)
				}
			}
		}
		if tried == 0 {
			t.Errorf("%s has no bounds", name)
		}
	}
}

// TestMessagesFit holds what Paddock writes against its own schemas.
func TestMessagesFit(t *testing.T) {
	code := 0
	r := jobs.Result{
		Ending: jobs.Exited, Class: jobs.ClassUser, ExitCode: &code, Attempt: 1,
		Steps:     []jobs.StepResult{{Name: "0", Ending: jobs.Exited, ExitCode: &code, Stdout: jobs.Output{Content: jobs.ContentOf([]byte("a\xff")), Bytes: 2}}},
		Artifacts: []jobs.ArtifactResult{{Path: "a", Mode: "0644", SHA256: strings.Repeat("0", 64)}},
	}
	j := jobs.Job{ID: jobs.NewID(), Tenant: "default", State: jobs.StateEnded, Image: "base", Result: &r, Spec: &jobs.Spec{Image: "base", Steps: []jobs.Step{{Cmd: "ls"}}}}
	for name, messages := range map[string][]any{
		"spec":   {*j.Spec},
		"result": {r},
		"event": {
			jobs.Event{Type: jobs.EventOutput, Job: j.ID, Tenant: "default", Attempt: 1, Seq: 1, Stream: jobs.Stdout, Content: jobs.Content{Text: "x"}},
			jobs.Event{Type: jobs.EventResult, Job: j.ID, Tenant: "default", Attempt: 1, Seq: 2, Final: true, State: jobs.StateEnded, Result: &r},
		},
		"job":          {j},
		"submit_reply": {jobs.SubmitReply{Job: &j}, jobs.SubmitReply{Error: &jobs.Error{Code: jobs.CodeInvalid, Message: "m", Faults: []jobs.Fault{{Path: "p", Message: "m"}}}}},
		"error":        {jobs.Error{Code: jobs.CodeUnavailable, Message: "m", RetryAfterMS: 5}},
		"requests#/$defs/SchedulesReply": {jobs.SchedulesReply{}, jobs.SchedulesReply{Schedules: []jobs.Schedule{{
			Name: "nightly", Cron: "@daily", Spec: j.Spec, NextAt: time.Now(), LastError: &jobs.Error{Code: jobs.CodeQuota, Message: "m"},
		}}}},
		"requests#/$defs/FleetReply": {jobs.FleetReply{Workers: []jobs.WorkerInfo{{Name: "w", State: jobs.FleetDraining, Pool: "default", Capacity: jobs.Resources{VCPUs: 512, MemoryMiB: 4 << 20}, SeenAt: time.Now()}}}},
		"requests#/$defs/WebhookReply": {
			jobs.WebhookReply{Endpoint: &jobs.Endpoint{ID: jobs.NewID(), Events: []string{jobs.HookEnded}, Format: jobs.FormatStandard, Secrets: []jobs.SecretInfo{{Hint: "abcd"}}}},
			jobs.WebhookReply{Deliveries: []jobs.Delivery{{ID: jobs.NewID(), State: jobs.DeliveryPending, Tries: []jobs.Try{{Attempt: 1, Status: 500}}}}},
		},
		"requests#/$defs/BatchReply": {jobs.BatchReply{Batch: &jobs.Batch{ID: jobs.NewID(), Total: 1}, Items: []jobs.BatchItem{{ID: j.ID}}}},
	} {
		s := compile(t, name)
		for _, m := range messages {
			b, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := fits(t, s, string(b)); err != nil {
				t.Errorf("%s: %s: %v", name, b, err)
			}
		}
	}
}
