package jobs_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
)

func faultsOf(err error) (list []string) {
	if e, ok := errors.AsType[*jobs.Error](err); ok {
		for _, f := range e.Faults {
			list = append(list, f.Path)
		}
	}
	return list
}

func TestSchedulingFaults(t *testing.T) {
	id := jobs.NewID()
	far := time.Now().AddDate(2, 0, 0).UTC().Format(time.RFC3339)
	for body, want := range map[string]string{
		`"run_at":"tomorrow"`:                                           "run_at",
		`"run_at":"` + far + `"`:                                        "run_at",
		`"run_at":"0000-01-01T00:00:00+01:00"`:                          "run_at", // in UTC of a year that no JSON has
		`"depends_on":["x"]`:                                            "depends_on[0]",
		`"depends_on":["` + id + `","` + id + `"]`:                      "depends_on[1]",
		`"id":"` + id + `","depends_on":["` + id + `"]`:                 "depends_on[0]",
		`"concurrency":{"limit":2}`:                                     "concurrency.key",
		`"concurrency":{"key":"k","limit":10001}`:                       "concurrency.limit",
		`"pool":"a.b"`:                                                  "pool",
		`"requires":{"a=b":"c"}`:                                        "requires.a=b",
		`"requires":{"a":"b,c"}`:                                        "requires.a",
		`"retry":{"attempts":11}`:                                       "retry.attempts",
		`"retry":{"rules":[{"action":"stop"}]}`:                         "retry.rules[0].action",
		`"retry":{"rules":[{"action":"retry","endings":["canceled"]}]}`: "retry.rules[0].endings[0]",
		`"callbacks":[{"url":"https://a.example","events":["result"]}]`: "callbacks[0].events[0]",
	} {
		_, _, err := jobs.Decode([]byte(`{"image":"base","steps":[{"shell":"true"}],`+body+`}`), jobs.Strict)
		if got := faultsOf(err); len(got) != 1 || got[0] != want {
			t.Errorf("%s: faults at %v (%v), want %s", body, got, err, want)
		}
	}
}

func TestRetries(t *testing.T) {
	exit := func(code int) *jobs.Result { return &jobs.Result{Ending: jobs.Exited, ExitCode: &code} }
	ended := func(e jobs.Ending) *jobs.Result { return &jobs.Result{Ending: e} }
	rules := func(l ...jobs.RetryRule) *jobs.Retry { return &jobs.Retry{Rules: l} }
	all := jobs.RetryRule{Action: jobs.ActionRetry}
	for _, c := range []struct {
		name   string
		retry  *jobs.Retry
		result *jobs.Result
		want   bool
	}{
		{"no rules, ours", nil, ended(jobs.VMFailed), true},
		{"no rules, the user's", nil, exit(1), false},
		{"no rule matches, ours", rules(jobs.RetryRule{ExitCodes: []int{1}, Action: jobs.ActionFail}), ended(jobs.VMFailed), true},
		{"an exit code", rules(jobs.RetryRule{ExitCodes: []int{75, 76}, Action: jobs.ActionRetry}), exit(76), true},
		{"another exit code", rules(jobs.RetryRule{ExitCodes: []int{75}, Action: jobs.ActionRetry}), exit(76), false},
		{"ending and code", rules(jobs.RetryRule{Endings: []jobs.Ending{jobs.TimeLimit}, ExitCodes: []int{1}, Action: jobs.ActionRetry}), exit(1), false},
		{"the first decides", rules(jobs.RetryRule{ExitCodes: []int{1}, Action: jobs.ActionFail}, all), exit(1), false},
		{"the first that matches", rules(jobs.RetryRule{ExitCodes: []int{2}, Action: jobs.ActionFail}, all), exit(1), true},
		{"ours, and unwanted", rules(jobs.RetryRule{Endings: []jobs.Ending{jobs.WorkerLost}, Action: jobs.ActionFail}), ended(jobs.WorkerLost), false},
		{"a policy's", rules(all), ended(jobs.Canceled), false},
		{"a signal and codes", rules(jobs.RetryRule{ExitCodes: []int{0}, Action: jobs.ActionRetry}), ended(jobs.Signaled), false},
	} {
		if got := c.retry.Retries(c.result); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestRequired(t *testing.T) {
	if got := jobs.Required(map[string]string{"os": "linux", "arch": "amd64"}); got != "arch=amd64,os=linux" {
		t.Error(got)
	}
	if got := jobs.Required(nil); got != "" {
		t.Error(got)
	}
}

func TestBatchSpecs(t *testing.T) {
	id := jobs.NewID()
	r := jobs.BatchRequest{
		Defaults: json.RawMessage(`{"language":"python","labels":{"from":"defaults"},"priority":3}`),
		Jobs: []json.RawMessage{
			[]byte(`{"source":"1"}`), []byte(`{"source":"2","priority":7,"labels":{}}`), []byte(`{}`), []byte(`[]`), []byte(`{"source":"3","sorce":"4"}`),
			[]byte(`{"source":"5","id":"` + id + `"}`), []byte(`{"source":"6","id":"` + id + `"}`), []byte(`null`),
		},
	}
	specs, errs, warnings, err := r.Specs()
	if err != nil {
		t.Fatal(err)
	}
	if specs[0].Language != "python" || *specs[0].Priority != 3 || specs[0].Labels["from"] != "defaults" || *specs[1].Priority != 7 || len(specs[1].Labels) != 0 {
		t.Errorf("specs %+v, %+v", specs[0], specs[1])
	}
	var bad []string
	for i, err := range errs {
		if err != nil {
			bad = append(bad, fmt.Sprint(i, faultsOf(err)))
		}
	}
	if diff := cmp.Diff([]string{"2 [source]", "3 []", "6 [id]", "7 []"}, bad); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	if len(warnings) != 1 || !strings.HasPrefix(warnings[0], "jobs[4].sorce") {
		t.Errorf("warnings %q", warnings)
	}
}

func TestBatchFaults(t *testing.T) {
	one := []json.RawMessage{[]byte(`{}`)}
	for want, r := range map[string]jobs.BatchRequest{
		"jobs":            {},
		"id":              {ID: "x", Jobs: one},
		"idempotency_key": {IdempotencyKey: strings.Repeat("k", 181), Jobs: one},
		"defaults":        {Defaults: json.RawMessage(`7`), Jobs: one},
		"defaults.source": {Defaults: json.RawMessage(`{"source":"1","source":"2"}`), Jobs: one},
	} {
		_, _, _, err := r.Specs()
		if got := faultsOf(err); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// Of what a batch says nothing is dropped, and nothing is taken for what it is not.
func TestDecodeBatch(t *testing.T) {
	r, warnings, err := jobs.DecodeBatch([]byte(` {"id":"x","idempotency_key":"k","atomic":true,"defaults":{"a":1},"jobs":[{"b":2}, null],"object":{"name":"n"},"jbos":[],"Jobs":[7]} `))
	if err != nil {
		t.Fatal(err)
	}
	want := &jobs.BatchRequest{
		ID: "x", IdempotencyKey: "k", Atomic: true, Defaults: json.RawMessage(`{"a":1}`), Jobs: []json.RawMessage{[]byte(`{"b":2}`), []byte(`null`)}, Object: &jobs.ObjectRef{Name: "n"},
	}
	slices.Sort(warnings)
	if diff := cmp.Diff([]string{"Jobs: unknown field; did you mean jobs?", "jbos: unknown field; did you mean jobs?"}, warnings); diff != "" || !cmp.Equal(want, r) {
		t.Errorf("%s%s", diff, cmp.Diff(want, r))
	}
	for body, want := range map[string]string{
		``: "", `null`: "", `[]`: "", `{`: "", `{"jobs":[1}`: "", `{} x`: "", `{"jobs":[{}],"jobs":[]}`: "jobs", `{"atomic":true,"atomic":false}`: "atomic",
		`{"jobs":{}}`: "jobs", `{"atomic":1}`: "atomic", `{"object":[]}`: "object", `{"id":"\ud800"}`: "id",
	} {
		_, _, err := jobs.DecodeBatch([]byte(body))
		if got := faultsOf(err); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// What defaults give a job does not hide what is wrong with its own fields.
func TestBatchJobsAreAsTheyAreWritten(t *testing.T) {
	r := jobs.BatchRequest{
		Defaults: json.RawMessage(`{"language":"sh","source":"1","labels":{}}`),
		Jobs:     []json.RawMessage{[]byte(`{"source":"2","source":"3"}`), []byte("{\"sour\xff\":1}"), []byte(`{"\ud800":1}`), []byte(` { "source" : "4" } `), []byte(`{ }`), []byte(`{"source":null}`)},
	}
	specs, errs, _, err := r.Specs()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"source", "", "", "ok", "ok", "source"} {
		if got := faultsOf(errs[i]); want == "ok" && errs[i] != nil || want != "ok" && (len(got) != 1 || got[0] != want) {
			t.Errorf("job %d: %v", i, errs[i])
		}
	}
	if specs[3] == nil || specs[3].Source != "4" || specs[4] == nil || specs[4].Source != "1" {
		t.Errorf("specs %+v, %+v", specs[3], specs[4])
	}
	r = jobs.BatchRequest{IdempotencyKey: "k\x00", Jobs: r.Jobs}
	if _, _, _, err := r.Specs(); err == nil {
		t.Error("a key with a NUL byte is taken, which not every ledger can keep")
	}
}

// Defaults do not make of a message what no memory holds.
func TestBatchDefaultsAreLarge(t *testing.T) {
	r := jobs.BatchRequest{
		Defaults: json.RawMessage(`{"language":"python","source":"` + strings.Repeat("x", 100<<10) + `"}`), Jobs: slices.Repeat([]json.RawMessage{[]byte(`{}`)}, 1000),
	}
	_, _, _, err := r.Specs()
	if e, ok := errors.AsType[*jobs.Error](err); !ok || e.Code != jobs.CodeTooLarge {
		t.Errorf("a hundred MiB: %v", err)
	}
	r.Jobs = r.Jobs[:600]
	if _, _, _, err := r.Specs(); err != nil {
		t.Errorf("sixty: %v", err)
	}
}

// The body counts in a batch's hash, and what names it does not.
func TestBatchHash(t *testing.T) {
	r := jobs.BatchRequest{Jobs: []json.RawMessage{[]byte(`{"source":"1"}`)}}
	same := r
	same.ID, same.IdempotencyKey = jobs.NewID(), "k"
	other := r
	other.Atomic = true
	if r.Hash() != same.Hash() || r.Hash() == other.Hash() {
		t.Error("the hash is of something else")
	}
}
