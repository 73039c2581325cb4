package jobs_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/jobs"
)

func TestDecodeRequest(t *testing.T) {
	id := jobs.NewID()
	get := func(b []byte) (any, []string, error) {
		var q jobs.GetRequest
		w, err := jobs.DecodeRequest(b, &q)
		return q, w, err
	}
	list := func(b []byte) (any, []string, error) {
		var q jobs.ListRequest
		w, err := jobs.DecodeRequest(b, &q)
		return q, w, err
	}
	stdin := func(b []byte) (any, []string, error) {
		var q jobs.StdinChunk
		w, err := jobs.DecodeRequest(b, &q)
		return q, w, err
	}
	for _, tt := range []struct {
		name     string
		decode   func([]byte) (any, []string, error)
		body     string
		want     any // where it is taken
		paths    []string
		warnings []string
	}{
		{"get", get, `{"id":"` + id + `"}`, jobs.GetRequest{ID: id}, nil, nil},
		{"get nothing", get, ``, jobs.GetRequest{}, nil, nil},
		{"get a list", get, `[]`, nil, []string{""}, nil},
		{"get a number", get, `{"id":7}`, nil, []string{"id"}, nil},
		{"get something else", get, `{"job":"x"}`, jobs.GetRequest{}, nil, []string{"job: unknown field"}},
		{"list", list, `{"states":["queued","dead"],"limit":3,"before":"` + id + `"}`, jobs.ListRequest{States: []jobs.State{"queued", "dead"}, Limit: 3, Before: id}, nil, nil},
		{"list all", list, ``, jobs.ListRequest{}, nil, nil},
		{"list what there is not", list, `{"states":["queued","done"],"before":"x"}`, nil, []string{"before", "states[1]"}, nil},
		{"list wrong types", list, `{"states":"queued","limit":"3","before":[]}`, nil, []string{"before", "limit", "states"}, nil},
		{"list a wrong type within", list, `{"states":[1]}`, nil, []string{"states[0]"}, nil},
		{"list with a misspelt field", list, `{"state":["queued"]}`, jobs.ListRequest{}, nil, []string{"state: unknown field; did you mean states?"}},
		{"list invalid UTF-8", list, "{\"before\":\"\xff\"}", nil, []string{""}, nil},
		{"text", stdin, `{"text":"x"}`, jobs.StdinChunk{Content: jobs.Content{Text: "x"}}, nil, nil},
		{"bytes and the end", stdin, `{"base64":"/w==","eof":true}`, jobs.StdinChunk{Content: jobs.Content{Base64: []byte{0xff}}, EOF: true}, nil, nil},
		{"text and bytes", stdin, `{"text":"x","base64":"/w=="}`, nil, []string{""}, nil},
		{"no input", stdin, `{}`, nil, []string{""}, nil},
		{"no body", stdin, ``, nil, []string{""}, nil},
		{"no known input", stdin, `{"txt":"x"}`, nil, []string{""}, []string{"txt: unknown field; did you mean text?"}},
		{"input of a wrong type", stdin, `{"text":1,"eof":"yes","base64":"?"}`, nil, []string{"base64", "eof", "text"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, warnings, err := tt.decode([]byte(tt.body))
			if d := cmp.Diff(tt.warnings, warnings); d != "" {
				t.Error(d)
			}
			if tt.paths == nil {
				if d := cmp.Diff(tt.want, got); d != "" || err != nil {
					t.Error(d, err)
				}
				return
			}
			e, ok := errors.AsType[*jobs.Error](err)
			if !ok || e.Code != jobs.CodeInvalid {
				t.Fatalf("error %v", err)
			}
			var paths []string
			for _, f := range e.Faults {
				paths = append(paths, f.Path)
			}
			if d := cmp.Diff(tt.paths, paths); d != "" || strings.Contains(fmt.Sprint(e), "json:") {
				t.Errorf("%s: %s", e, d)
			}
		})
	}
}

// What something is asked for by reaches the ledger, and not every ledger takes every text.
func TestNamesWithoutNUL(t *testing.T) {
	for name, err := range map[string]error{
		"GetRequest.id":              decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.GetRequest{})),
		"DeadRequest.id":             decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.DeadRequest{})),
		"ScheduleQuery.name":         decoded(jobs.DecodeRequest([]byte(`{"name":"\u0000"}`), &jobs.ScheduleQuery{})),
		"FleetRequest.worker":        decoded(jobs.DecodeRequest([]byte(`{"worker":"\u0000"}`), &jobs.FleetRequest{})),
		"EndpointID.id":              decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.EndpointID{})),
		"DeliveryID.id":              decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.DeliveryID{})),
		"RotateRequest.id":           decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.RotateRequest{})),
		"RedeliverRequest.id":        decoded(jobs.DecodeRequest([]byte(`{"id":"\u0000"}`), &jobs.RedeliverRequest{})),
		"DeliveriesRequest.endpoint": decoded(jobs.DecodeRequest([]byte(`{"endpoint":"\u0000"}`), &jobs.DeliveriesRequest{})),
		"DeliveriesRequest.job":      decoded(jobs.DecodeRequest([]byte(`{"job":"\u0000"}`), &jobs.DeliveriesRequest{})),
		"ObjectRequest.job":          decoded(jobs.DecodeRequest([]byte(`{"sha256":"`+strings.Repeat("0", 64)+`","job":"\u0000"}`), &jobs.ObjectRequest{})),
	} {
		_, at, _ := strings.Cut(name, ".")
		if got := faultsOf(err); len(got) != 1 || got[0] != at {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func decoded(_ []string, err error) error { return err }
