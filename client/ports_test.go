package client_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/client"
	"github.com/paddockvm/paddock/jobs"
)

// standing is a Brain whose jobs stand where the test says.
type standing struct {
	*bustest.Brain
	state   jobs.State
	attempt int
}

func (s *standing) Get(ctx context.Context, tenant, id string) (jobs.Job, error) {
	j, err := s.Brain.Get(ctx, tenant, id)
	j.State, j.Attempt = s.state, s.attempt
	return j, err
}

func TestPorts(t *testing.T) {
	first, second := []jobs.Port{{Guest: 80, Host: "127.0.0.1:30000"}}, []jobs.Port{{Guest: 80, Host: "127.0.0.1:30001", URL: "http://80-x.localhost:1"}}
	event := func(attempt int, seq int64, typ jobs.EventType, with func(*jobs.Event)) jobs.Event {
		e := bustest.Event("", attempt, seq, "")
		e.Type = typ
		if with != nil {
			with(&e)
		}
		return e
	}
	running := func(attempt int) jobs.Event {
		return event(attempt, 1, jobs.EventState, func(e *jobs.Event) { e.State = jobs.StateRunning })
	}
	told := func(attempt int, l []jobs.Port) jobs.Event {
		return event(attempt, 2, jobs.EventPorts, func(e *jobs.Event) { e.Ports = l })
	}
	again := event(1, 3, jobs.EventState, func(e *jobs.Event) { e.State = jobs.StateQueued })
	failed := []jobs.Event{running(1), told(1, first), event(1, 3, jobs.EventOutput, nil), event(1, 4, jobs.EventState, func(e *jobs.Event) { e.State = jobs.StateQueued })}
	printed := []jobs.Event{running(1), told(1, first)}
	for seq := int64(3); seq < 40; seq++ {
		printed = append(printed, event(1, seq, jobs.EventOutput, nil))
	}
	for _, c := range []struct {
		name    string
		state   jobs.State
		attempt int
		events  []jobs.Event
		want    []jobs.Port
	}{
		{"waits", jobs.StateQueued, 0, nil, nil},
		{"begins", jobs.StateLeased, 1, nil, nil},
		{"has just begun", jobs.StateLeased, 1, []jobs.Event{running(1), told(1, first)}, first},
		{"runs", jobs.StateRunning, 1, printed, first},
		{"lists none", jobs.StateRunning, 1, []jobs.Event{running(1), event(1, 2, jobs.EventOutput, nil)}, nil},
		{"waits to be tried again", jobs.StateQueued, 1, []jobs.Event{running(1), told(1, first), again}, nil},
		{"has failed, and the record is older", jobs.StateRunning, 1, []jobs.Event{running(1), told(1, first), again}, nil},
		{"runs again", jobs.StateRunning, 2, []jobs.Event{running(1), told(1, first), again, running(2), told(2, second)}, second},
		{"runs again, and has printed before", jobs.StateRunning, 2, append(failed, running(2), told(2, second)), second},
		{"runs again, and the record is older", jobs.StateRunning, 1, []jobs.Event{running(1), told(1, first), again, running(2), told(2, second)}, second},
		{"has ended", jobs.StateEnded, 1, []jobs.Event{running(1), told(1, first), bustest.Final("", 1, 3)}, nil},
		{"has ended, and the record is older", jobs.StateRunning, 1, []jobs.Event{running(1), told(1, first), bustest.Final("", 1, 3)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := bustest.Start(t)
			b, brain := s.Connect(), &standing{&bustest.Brain{}, c.state, c.attempt}
			bustest.Serve(t, b, brain)
			job := brain.Add("default")
			for i := range c.events {
				c.events[i].Job = job
			}
			if len(c.events) > 0 {
				bustest.Publish(t, b, c.events...)
			}
			got, err := connect(t, s).Ports(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if _, err := connect(t, s, client.Tenant("other")).Ports(t.Context(), job); code(err) != jobs.CodeNotFound {
				t.Errorf("another tenant: got %v, want not_found", err)
			}
		})
	}
}
