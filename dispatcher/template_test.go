package dispatcher_test

import (
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/paddockvm/paddock/dispatcher"
)

// templateWait is the dispatcher's.
const templateWait = 500 * time.Millisecond

// holder is a worker that says which templates it has, and has beaten since.
func (r *rig) holder(name string, templates ...string) *hand {
	h := r.worker(name)
	h.says(templates...)
	return h
}

// says beats with these templates; none is not nothing said.
func (h *hand) says(templates ...string) {
	h.templates = append([]string{}, templates...)
	h.beat()
}

// A job goes to the worker that has its template, whoever asked first, and however the heartbeat that says so and the request come.
func TestLeasePrefersTemplate(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		builds, has := r.holder("builds"), r.holder("has")
		first := builds.ask(r.Context(), builds.request(1, 10*time.Second))
		second := has.ask(r.Context(), has.request(1, 10*time.Second))
		has.says("base") // its request stands
		j := r.admit(spec())
		if diff := gocmp.Diff([]string{j.ID}, names(second.leases(t))); diff != "" {
			r.Errorf("leased by the one that has the template (-want +got):\n%s", diff)
		}
		first.leases(t)
	})
}

// A job waits for the worker that has its template and is busy, and no longer than half of what building takes; it goes at once where that
// one does not take it any more, or where another has built it meanwhile.
func TestLeaseWaitsForTemplate(t *testing.T) {
	const soon = 100 * time.Millisecond
	for name, c := range map[string]struct {
		then func(has, builds *hand) // soon after the job came
		want time.Duration           // after which it was given to the one that builds
	}{
		"nothing happens":       {func(*hand, *hand) {}, templateWait},
		"it drains":             {func(has, _ *hand) { has.drain() }, soon},
		"it loses it":           {func(has, _ *hand) { has.says() }, soon},
		"the other has built":   {func(_, builds *hand) { builds.says("base") }, soon},
		"it says no more of it": {func(has, _ *hand) { has.templates = nil; has.beat() }, soon},
		"it is cordoned": {func(has, _ *hand) {
			if _, err := has.Cordon(has.Context(), has.name); err != nil {
				has.Error(err)
			}
		}, soon},
	} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{}, func(r *rig) {
				has, builds := r.holder("has", "base"), r.holder("builds")
				poll := builds.ask(r.Context(), builds.request(1, 10*time.Second))
				came := time.Now()
				j := r.admit(spec())
				time.Sleep(soon)
				c.then(has, builds)
				if diff := gocmp.Diff([]string{j.ID}, names(poll.leases(t))); diff != "" {
					r.Errorf("leased (-want +got):\n%s", diff)
				}
				if took := poll.at.Sub(came); took != c.want {
					r.Errorf("it was given after %v, want %v", took, c.want)
				}
			})
		})
	}
}

// The one that has the template and becomes free while a job waits for it gets it.
func TestLeaseOfTheTemplatesHolder(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		has, builds := r.holder("has", "base"), r.holder("builds")
		poll := builds.ask(r.Context(), builds.request(1, 10*time.Second))
		j := r.admit(spec())
		time.Sleep(templateWait - time.Millisecond)
		if diff := gocmp.Diff([]string{j.ID}, names(has.lease(1, 0))); diff != "" {
			r.Errorf("leased (-want +got):\n%s", diff)
		}
		if got := poll.leases(t); len(got) > 0 {
			r.Errorf("the other leased %v", names(got))
		}
	})
}

// A worker that has the template and is gone is not waited for once that is known.
func TestLeaseWaitsNotForALostHolder(t *testing.T) {
	for name, lose := range map[string]func(r *rig, has *hand){
		"silent": func(*rig, *hand) {},
		"removed": func(r *rig, has *hand) {
			if _, err := r.RemoveWorker(r.Context(), has.name); err != nil {
				r.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			rigged(t, dispatcher.Config{LeaseTTL: 10 * time.Second, Grace: 5*time.Second + 300*time.Millisecond}, func(r *rig) {
				has, builds := r.holder("has", "base"), r.holder("builds")
				builds.live(15800 * time.Millisecond) // it is found lost 200 ms later
				poll := builds.ask(r.Context(), builds.request(1, 10*time.Second))
				came := time.Now()
				j := r.admit(spec())
				time.Sleep(time.Millisecond)
				lose(r, has)
				if diff := gocmp.Diff([]string{j.ID}, names(poll.leases(t))); diff != "" {
					r.Errorf("leased (-want +got):\n%s", diff)
				}
				if took := poll.at.Sub(came); took >= templateWait {
					r.Errorf("it was given after %v", took)
				}
			})
		})
	}
}

// What would expire while it is held up is not.
func TestLeaseOfAJobInAHurry(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{2*templateWait - time.Millisecond: 0, 2 * templateWait: templateWait} {
		rigged(t, dispatcher.Config{}, func(r *rig) {
			r.holder("has", "base")
			builds := r.holder("builds")
			poll := builds.ask(r.Context(), builds.request(1, 10*time.Second))
			came := time.Now()
			s := spec()
			s.QueueTTLMS = ttl.Milliseconds()
			r.admit(s)
			if got := poll.leases(t); len(got) != 1 || poll.at.Sub(came) != want {
				r.Errorf("with %v to wait: leased %v after %v, want it after %v", ttl, names(got), poll.at.Sub(came), want)
			}
		})
	}
}

// A worker of the version before does not say which templates it has: it gets jobs as before, and nobody waits for it.
func TestLeaseOfAWorkerThatDoesNotSay(t *testing.T) {
	rigged(t, dispatcher.Config{}, func(r *rig) {
		r.worker("busy")
		builds, old := r.holder("builds"), r.worker("old")
		first := builds.ask(r.Context(), builds.request(1, 10*time.Second))
		came := time.Now()
		j := r.admit(spec())
		if got := first.leases(t); len(got) != 1 || got[0].Job != j.ID || first.at.Sub(came) > 0 {
			r.Errorf("leased %v after %v, want it at once", names(got), first.at.Sub(came))
		}
		r.holder("has", "base")
		j = r.admit(spec())
		if diff := gocmp.Diff([]string{j.ID}, names(old.lease(1, 0))); diff != "" {
			r.Errorf("leased by the one that does not say (-want +got):\n%s", diff)
		}
	})
}
