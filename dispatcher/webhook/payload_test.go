package webhook_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// TestPayloadBound: whatever a job has printed and is labelled with, a body has no more than jobs.MaxHookBytes, says what it is about, and
// says when something was left out.
func TestPayloadBound(t *testing.T) {
	labels := func(value string) map[string]string {
		m := map[string]string{}
		for i := range 32 {
			m[fmt.Sprintf("key-%060d", i)] = value
		}
		return m
	}
	for _, tt := range []struct {
		name           string
		stdout, stderr []byte
		reason         string
		words          string // more of Limit and Signal
		labels         map[string]string
		thinned        bool
		labelled       bool
	}{
		{"little", []byte("out"), []byte("err"), "", "", labels("x"), false, true},
		{"much output", []byte(strings.Repeat("o", 16<<10)), []byte(strings.Repeat("e", 16<<10)), "", "", nil, true, false},
		{"output that JSON makes six times as long", []byte(strings.Repeat("\x01", 16<<10)), []byte(strings.Repeat("<", 16<<10)), "", "", labels("y"), true, true},
		{"bytes", []byte(strings.Repeat("\xff", 16<<10)), nil, "", "", nil, true, false},
		{"characters of several bytes", []byte(strings.Repeat("€", 5000)), nil, "", "", nil, true, false},
		{"long labels", []byte("out"), nil, "", "", labels(strings.Repeat("\x02", 255)), true, false},
		{"a long reason", nil, nil, strings.Repeat("r", 30_000), "", nil, true, false},
		{"long words", nil, nil, "", strings.Repeat("\x01", 30_000), labels("y"), true, false},
		{"all of it", []byte(strings.Repeat("\x01", 16<<10)), []byte(strings.Repeat("\xff", 16<<10)), strings.Repeat("<", 30_000), "", labels(strings.Repeat("\x02", 255)), true, false},
	} {
		for _, format := range []string{jobs.FormatStandard, jobs.FormatCloudEvents} {
			t.Run(tt.name+" "+format, func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					b := &book{}
					var store = webhooktest.NewStore()
					s, stop := run(t, webhook.Config{Store: store, Transport: transport(b.trip)})
					add(t, s, "t", jobs.EndpointRequest{URL: "https://example.com/", Format: format})
					e := jobs.Event{Job: jobs.NewID(), Tenant: "t", Attempt: 1, Time: time.Now(), Result: &jobs.Result{
						Ending: jobs.Signaled, Signal: "SIGKILL" + tt.words, Limit: tt.words, Reason: tt.reason,
						Steps: []jobs.StepResult{{}, {Stdout: jobs.Output{Content: jobs.ContentOf(tt.stdout), Bytes: 1 << 20}, Stderr: jobs.Output{Content: jobs.ContentOf(tt.stderr)}}},
					}}
					h := hook(jobs.HookEnded, e)
					h.Labels = tt.labels
					store.Hook(h)
					time.Sleep(time.Minute)
					stop()
					body := only(t, s, "t").Body
					var got struct{ Data jobs.HookData }
					if err := json.Unmarshal([]byte(body), &got); err != nil {
						t.Fatal(err)
					}
					d := got.Data
					if len(body) > jobs.MaxHookBytes {
						t.Errorf("%d bytes", len(body))
					}
					if d.Job != e.Job || d.Ending != jobs.Signaled || !strings.HasPrefix(d.Signal, "SIGKILL") || d.Thinned != tt.thinned || (d.Labels != nil) != tt.labelled || d.Stdout.Bytes != 1<<20 {
						t.Errorf("data %+v", d)
					}
					if !strings.HasPrefix(string(tt.stdout), string(d.Stdout.Data())) || !strings.HasPrefix(string(tt.stderr), string(d.Stderr.Data())) {
						t.Error("the output is not the beginning of the job's")
					}
				})
			})
		}
	}
}
