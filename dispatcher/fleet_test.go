package dispatcher_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/jobs"
)

// shown is how the fleet's list shows a worker.
func (r *rig) shown(name string) jobs.WorkerInfo {
	r.Helper()
	all, err := r.Workers(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	for _, w := range all {
		if w.Name == name {
			return w
		}
	}
	r.Fatalf("no worker %s among %+v", name, all)
	return jobs.WorkerInfo{}
}

func (r *rig) state(name, want string) {
	r.Helper()
	if got := r.shown(name); got.State != want {
		r.Errorf("%s is %s, want %s", name, got.State, want)
	}
}

// A cordoned worker gets nothing, over restarts, until it is uncordoned; what it has it ends.
func TestCordon(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		first := r.admit(spec())
		l := a.one()
		r.state("a", jobs.FleetReady)
		if got := r.shown("a"); got.Running != 1 || got.Capacity != size || got.Pool != jobs.DefaultPool || got.Images[0] != "base" {
			r.Errorf("shown as %+v", got)
		}
		if _, err := r.Cordon(r.Context(), "a"); err != nil {
			r.Fatal(err)
		}
		j := r.admit(spec())
		a.idle("cordoned")
		r.state("a", jobs.FleetCordoned)
		a.ok(l)
		r.ended(first.ID, jobs.StateEnded, jobs.Exited)
		r.restart()
		a.session = 0
		a.beat()
		a.idle("cordoned, after a restart")
		b := r.worker("b")
		if l := b.one(); l.Job != j.ID {
			r.Errorf("given %s", l.Job)
		}
		k := r.admit(spec())
		if _, err := r.Uncordon(r.Context(), "a"); err != nil {
			r.Fatal(err)
		}
		b.drain()
		if l := a.one(); l.Job != k.ID {
			r.Errorf("given %s", l.Job)
		}
	})
}

// The ledger keeps workers that are heard of.
func TestWorkersAreKept(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		begin := time.Now()
		a.live(3 * time.Minute)
		all, err := r.store.Workers(r.Context())
		if err != nil || len(all) != 1 || all[0].Seen.Before(begin.Add(time.Minute)) {
			r.Errorf("after %s the ledger has %+v, %v", time.Since(begin), all, err)
		}
	})
}

// What a drained worker has not ended in time is given to others, at no cost to its retries.
func TestDrainWithin(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a, b := r.worker("a"), r.worker("b")
		j := r.admit(retries(0))
		l := a.one()
		if w, err := r.Drain(r.Context(), "a", 10*time.Second); err != nil || w.State != jobs.FleetDraining {
			r.Fatalf("%+v, %v", w, err)
		}
		a.live(4*time.Second, l.Held)
		r.restart() // whoever takes over knows the time too
		a.live(4*time.Second, l.Held)
		r.stands(j.ID, jobs.StateLeased)
		b.beat()
		a.live(6*time.Second, l.Held)
		again := b.one()
		if again.Job != j.ID || again.Attempt != 2 {
			r.Fatalf("given %+v", again.Held)
		}
		if got := a.beat(l.Held).Drop; len(got) != 1 {
			r.Errorf("the drained worker is told to drop %v", got)
		}
		r.state("a", jobs.FleetDrained)
		if !a.report(l, jobs.Exited).Fenced {
			r.Error("its late result counts")
		}
		b.ok(again)
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

func TestRemoveWorker(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		a := r.worker("a")
		j := r.admit(spec())
		a.one()
		_, err := r.RemoveWorker(r.Context(), "a")
		r.wantCode("one that lives", jobs.CodeConflict, err)
		_, err = r.RemoveWorker(r.Context(), "b")
		r.wantCode("an unknown one", jobs.CodeNotFound, err)
		if _, err := r.Cordon(r.Context(), "a"); err != nil {
			r.Fatal(err)
		}
		time.Sleep(6 * time.Second) // it has gone, and its lease has not run out
		r.stands(j.ID, jobs.StateLeased)
		if _, err := r.RemoveWorker(r.Context(), "a"); err != nil {
			r.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		r.stands(j.ID, jobs.StateQueued)
		_, err = r.Uncordon(r.Context(), "a")
		r.wantCode("one that was removed", jobs.CodeNotFound, err)
		a = r.worker("a") // a new one of that name is as any other
		r.state("a", jobs.FleetReady)
		a.ok(a.one())
		r.ended(j.ID, jobs.StateEnded, jobs.Exited)
	})
}

// A job goes where it says, and is refused where nobody is.
func TestPlaces(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		join := func(name, pool string, labels map[string]string) *hand {
			h := &hand{rig: r, name: name, images: []string{"base"}}
			b := h.heartbeat()
			b.Pool, b.Labels = pool, labels
			reply, err := r.Beat(r.Context(), b)
			if err != nil {
				r.Fatal(err)
			}
			h.session = reply.Session
			return h
		}
		at := func(pool string, requires map[string]string) *jobs.Spec {
			s := spec()
			s.Pool, s.Requires = pool, requires
			return s
		}
		join("a", "", map[string]string{"region": "eu", "arch": "amd64"})
		join("b", "gpu", map[string]string{"region": "us"})
		for what, c := range map[string]struct {
			spec *jobs.Spec
			path string
		}{
			"another pool":           {at("tpu", nil), "pool"},
			"another region":         {at("", map[string]string{"region": "us"}), "requires"},
			"a label of nobody":      {at("gpu", map[string]string{"region": "us", "disk": "nvme"}), "requires"},
			"the default, by name":   {at(jobs.DefaultPool, nil), ""},
			"one of its labels":      {at("", map[string]string{"region": "eu"}), ""},
			"the other pool's label": {at("gpu", map[string]string{"region": "us"}), ""},
		} {
			_, _, err := r.Admit(r.Context(), "t", c.spec)
			if got := paths(err); c.path == "" && err != nil || c.path != "" && (len(got) != 1 || got[0] != c.path || code(err) != jobs.CodeUnsupported) {
				r.Errorf("%s: %v, want a fault at %q", what, err, c.path)
			}
		}
	})
}

// What a worker offers counts for an hour after it was last heard of, whichever dispatcher leads.
func TestOffersOutliveTheDispatcher(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		b := r.worker("b", "base", "python")
		python := spec()
		python.Image = "python"
		offered := func(what string, want jobs.Code) {
			r.Helper()
			_, _, err := r.Admit(r.Context(), "t", python)
			r.wantCode(what, want, err)
		}
		b.images = append(b.images, "rust") // it has been built since
		b.beat()
		time.Sleep(time.Second)
		r.restart()
		r.worker("a")
		offered("b has not been heard of by this dispatcher", "")
		python.Image = "rust"
		offered("what b offered last", "")
		python.Image = "cobol"
		offered("what nobody had", jobs.CodeInvalid)
		python.Image = "python"
		time.Sleep(time.Minute)
		r.worker("a")
		offered("b is lost", "")
		r.restart()
		r.worker("a")
		offered("b was lost before this dispatcher began", "")
		b.session = 0
		for range 4 {
			b.beat()
			b.ok(b.one())
		}
		for range 62 {
			time.Sleep(time.Minute)
			r.worker("a")
		}
		r.restart()
		r.worker("a")
		offered("b is gone", jobs.CodeInvalid)
	})
}

// Where the last dispatcher, of the version before, has not noted what workers offer, what only one of them could run that has not been
// heard of yet is refused for now; for good when it could have been heard of.
func TestRefusedForNow(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		r.worker("b", "base", "python")
		python := spec()
		python.Image = "python"
		refused := func(what string, forNow bool) {
			r.Helper()
			_, _, err := r.Admit(r.Context(), "t", python)
			if e, ok := errors.AsType[*jobs.Error](err); !ok || (e.RetryAfterMS > 0) != forNow {
				r.Errorf("%s: %v (%+v)", what, err, e)
			}
		}
		r.restartWithoutOffers()
		r.worker("a")
		refused("b may have it", true)
		time.Sleep(21 * time.Second)
		r.worker("a")
		refused("b is gone", false)
		r.restartWithoutOffers()
		r.worker("a")
		b := r.worker("b", "base", "python")
		if _, _, err := r.Admit(r.Context(), "t", python); err != nil {
			r.Error(err)
		}
		b.ok(b.one())
		python.Image = "cobol"
		refused("all have been heard of", false)
		for range 12 {
			time.Sleep(time.Minute)
			r.worker("a")
		}
		r.restartWithoutOffers()
		r.worker("a")
		refused("b was silent for long before", false)
	})
}

// What was said of a worker that is long gone can be taken back.
func TestFlagOfOneThatIsGone(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("a")
		if _, err := r.Cordon(r.Context(), "a"); err != nil {
			r.Fatal(err)
		}
		r.restart()
		if w, err := r.Uncordon(r.Context(), "a"); err != nil || w.State != jobs.FleetLost {
			r.Errorf("%+v, %v", w, err)
		}
		if _, err := r.RemoveWorker(r.Context(), "a"); err != nil {
			r.Error(err)
		}
		_, err := r.RemoveWorker(r.Context(), "a")
		r.wantCode("removed already", jobs.CodeNotFound, err)
	})
}
