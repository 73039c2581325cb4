package images_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/images"
	"github.com/paddockvm/paddock/jobs"
	"github.com/paddockvm/paddock/test/bubble"
)

// steward is a process that keeps a store's snapshots to a policy, in a bubble.
type steward struct {
	ranch
	figures *prometheus.Registry
	log     *journal
}

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// newSteward starts one, and has it look once.
func newSteward(t *testing.T, s *images.Store, p images.Policy) *steward {
	t.Helper()
	w := &steward{ranch: newRanch(t, reopen(t, s)), figures: prometheus.NewRegistry(), log: &journal{}}
	ctx, stop := context.WithCancel(zerolog.New(w.log).WithContext(t.Context()))
	r := images.NewRetention(w.Snapshots, p, w.figures)
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	synctest.Wait()
	return w
}

// names are those of the snapshots that there are, each of which has to be whole.
func (w *steward) names() (names string) {
	w.t.Helper()
	synctest.Wait()
	list, err := w.Snapshots.List()
	must(w.t, err)
	for _, s := range list {
		names += s.Name
		must(w.t, w.Snapshots.Verify(w.t.Context(), s.ID))
	}
	return names
}

func (w *steward) have(when, want string) {
	w.t.Helper()
	if got := w.names(); got != want {
		w.t.Errorf("%s: there are %q, want %q", when, got, want)
	}
}

// makes has a machine make whole snapshots, an hour apart; "+" gives the one after it a tag.
func (w *steward) makes(m *living, names string) (list []jobs.Snapshot) {
	w.t.Helper()
	var tags []string
	for _, name := range strings.Split(names, "") {
		if name == "+" {
			tags = []string{"keep"}
			continue
		}
		m.live(name, 2)
		s := w.keep(m, "", jobs.SnapshotRequest{Name: name, Tags: tags, Parent: jobs.ParentNone})
		list, tags = append(list, s), nil
		time.Sleep(time.Hour)
	}
	return list
}

// What is too old goes within the hour, and nothing else does.
func TestRetentionByAge(t *testing.T) {
	s := shop(t)
	m := newRanch(t, s).machine("x")
	bubble.Test(t, func(t *testing.T) {
		w := newSteward(t, s, images.Policy{MaxAge: 90 * time.Minute, KeepTagged: true})
		time.Sleep(time.Minute)    // it looks on the hour
		made := w.makes(m, "a+bc") // at 0:01, 1:01 and 2:01; it is 3:01
		w.have("at 3:01, a is 180 and b, which has a tag, 120 minutes old", "bc")
		time.Sleep(58 * time.Minute)
		w.have("at 3:59, c is 118 minutes old, which nobody has seen", "bc")
		time.Sleep(time.Minute)
		w.have("at 4:00", "b")
		time.Sleep(1000 * time.Hour)
		w.have("after weeks", "b")
		if diff := cmp.Diff(map[string]float64{
			"paddock_snapshots_removed_total": 2, "paddock_snapshots_removed_bytes_total": float64(made[0].StoredBytes + made[2].StoredBytes),
			"paddock_snapshots": 1, "paddock_snapshots_bytes": float64(made[1].StoredBytes),
		}, w.told()); diff != "" {
			t.Errorf("figures (-want +got):\n%s", diff)
		}
		for _, s := range []jobs.Snapshot{made[0], made[2]} {
			if strings.Count(w.log.String(), s.ID) != 1 {
				t.Errorf("%s is not logged once:\n%s", s.Image, w.log)
			}
		}
	})
}

// told gives the figures, by their names.
func (w *steward) told() map[string]float64 {
	w.t.Helper()
	got := map[string]float64{}
	families, err := w.figures.Gather()
	must(w.t, err)
	for _, f := range families {
		got[f.GetName()] = f.Metric[0].GetCounter().GetValue() + f.Metric[0].GetGauge().GetValue()
	}
	return got
}

// What is too many goes when another has been made, without waiting for the hour.
func TestRetentionByNumberAndSize(t *testing.T) {
	for name, p := range map[string]func(each int64) images.Policy{
		"number": func(int64) images.Policy { return images.Policy{Keep: 2} },
		"size":   func(each int64) images.Policy { return images.Policy{MaxBytes: 2*each + each/2} },
	} {
		t.Run(name, func(t *testing.T) {
			s := shop(t)
			m := newRanch(t, s).machine("x")
			bubble.Test(t, func(t *testing.T) {
				first := newRanch(t, reopen(t, s)).keep(m, "", jobs.SnapshotRequest{Name: "a", Parent: jobs.ParentNone})
				w := newSteward(t, s, p(first.StoredBytes))
				for _, step := range []struct{ name, want string }{{"b", "ab"}, {"c", "bc"}, {"d", "cd"}} {
					time.Sleep(time.Second)
					w.keep(m, "", jobs.SnapshotRequest{Name: step.name, Parent: jobs.ParentNone})
					w.have(step.name+" was made", step.want)
				}
			})
		})
	}
}

// What is in use stays, with its ancestors, until nobody uses it any more; who makes a snapshot of a machine whose last one has gone gets it.
func TestRetentionLeavesWhatIsInUse(t *testing.T) {
	s := shop(t)
	m := newRanch(t, s).machine("x")
	bubble.Test(t, func(t *testing.T) {
		w := newSteward(t, s, images.Policy{MaxAge: 24 * time.Hour})
		time.Sleep(time.Minute)
		var last string
		for _, name := range []string{"a", "b", "c"} {
			m.live(name, 2)
			last = w.keep(m, last, jobs.SnapshotRequest{Name: name}).ID
		}
		user := newRanch(t, reopen(t, s)) // another process
		tmpl, _, err := user.Template(t.Context(), "snapshot:a/b", jobs.Shape{})
		must(t, err)
		_, _, err = user.Template(t.Context(), "snapshot:a/b", jobs.Shape{})
		must(t, err)
		time.Sleep(48 * time.Hour)
		w.have("b is in use, a is its parent", "ab")
		if _, _, err := user.Template(t.Context(), "snapshot:a/c", jobs.Shape{}); !errors.Is(err, images.ErrNoSnapshot) || !strings.Contains(err.Error(), "snapshot:a/c") {
			t.Errorf("one that is gone: %v", err)
		}
		user.Release(tmpl)
		time.Sleep(2 * time.Hour)
		w.have("it was given twice, and released once", "ab")
		m.live("d", 3)
		d := w.keep(m, last, jobs.SnapshotRequest{Name: "d"})
		if d.Parent != "" {
			t.Errorf("d is the difference to %s", d.Parent)
		}
		user.Release(tmpl)
		time.Sleep(2 * time.Hour)
		w.have("nobody uses it", "d")
	})
}

// Several workers on a host get into nobody's way: each snapshot is removed once, and nothing fails.
func TestRetentionsOfOneStore(t *testing.T) {
	s := shop(t)
	m := newRanch(t, s).machine("x")
	bubble.Test(t, func(t *testing.T) {
		all := []*steward{newSteward(t, s, images.Policy{Keep: 3}), newSteward(t, s, images.Policy{Keep: 2}), newSteward(t, s, images.Policy{MaxAge: 3 * time.Hour})}
		all[0].makes(m, "abcdef")
		all[0].have("two of them have let go of the old ones", "ef")
		removed := 0.0
		for _, w := range all {
			removed += w.told()["paddock_snapshots_removed_total"]
			if strings.Contains(w.log.String(), `"level":"error"`) {
				t.Errorf("it says:\n%s", w.log)
			}
		}
		if removed != 4 {
			t.Errorf("%v were removed in all, want 4", removed)
		}
	})
}

// Without a policy nothing is removed, and nobody looks. One that cannot be read keeps all, which is said, until it is there no more.
func TestRetentionOfNothing(t *testing.T) {
	s := shop(t)
	m := newRanch(t, s).machine("x")
	bubble.Test(t, func(t *testing.T) {
		none, w := newSteward(t, s, images.Policy{KeepTagged: true}), newSteward(t, s, images.Policy{MaxAge: 10 * time.Hour})
		made := none.makes(m, "abc")
		none.have("nothing is old yet", "abc")
		manifest := filepath.Join(s.Dir(), "snapshots", "kept", made[1].ID, "paddock-snapshot.json")
		must(t, os.Rename(manifest, manifest+"-away"))
		time.Sleep(20 * time.Hour)
		synctest.Wait()
		if list, err := none.Snapshots.List(); err == nil || len(list) != 2 {
			t.Errorf("there are %d: %v", len(list), err)
		}
		if !strings.Contains(w.log.String(), "cannot remove snapshots") || !strings.Contains(w.log.String(), made[1].ID) {
			t.Errorf("it says:\n%s", w.log)
		}
		must(t, os.Rename(manifest+"-away", manifest))
		time.Sleep(time.Hour)
		none.have("all can be read", "")
		if none.log.String() != "" {
			t.Errorf("without a policy it says:\n%s", none.log)
		}
	})
}

// Cached templates stay, which gc removes.
func TestRetentionLeavesCachedTemplates(t *testing.T) {
	s := shop(t)
	m := newRanch(t, s).machine("x")
	bubble.Test(t, func(t *testing.T) {
		w := newSteward(t, s, images.Policy{Keep: 2})
		w.makes(m, "ab")
		tmpl, _, err := w.Template(t.Context(), "snapshot:a/b", jobs.Shape{})
		must(t, err)
		w.Release(tmpl)
		w.makes(m, "c")
		w.have("the first is gone", "bc")
		if _, err := os.Stat(tmpl.Dir); err != nil {
			t.Errorf("the template of one that stays: %v", err)
		}
		_, err = w.Snapshots.Collect(t.Context(), images.Policy{})
		must(t, err)
		if _, err := os.Stat(tmpl.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("gc has left it: %v", err)
		}
	})
}
