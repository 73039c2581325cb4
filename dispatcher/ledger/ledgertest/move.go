package ledgertest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

// fill puts something of everything into an empty ledger that the handle leads.
func (s *suite) fill() {
	keyed := s.admission("t")
	keyed.Key = "key"
	keyed.Job.Spec.Callbacks = []jobs.Callback{{URL: "https://example.org/<&>"}}
	s.admit(keyed)
	h := jobs.Held{Job: keyed.Job.ID, Attempt: 1, Epoch: 1}
	s.lease(h, true)
	if err := s.Running(s.ctx(), []jobs.Held{h}, s.now); err != nil {
		s.Fatal(err)
	}
	s.requeue(h, true)
	b := s.batch("t", 3)
	b.Key = "batch"
	s.admitBatch(b)
	for _, a := range b.Jobs {
		s.endQueued(a.Job.ID, 0, true)
	}
	s.redrive(s.dead("t").ID, s.admission("t"), true)
	s.dead("other")
	s.put("t", s.schedule("a"))
	if _, err := s.Register(s.ctx(), "a", s.now); err != nil {
		s.Fatal(err)
	}
	if err := s.Seen(s.ctx(), []ledger.Seen{{Worker: "a", At: s.now, Offer: []byte("offers")}}); err != nil {
		s.Fatal(err)
	}
	s.fillStates()
	s.fillWebhooks()
	out := s.outgoing(1000)
	s.published(out[len(out)-1].ID) // the last id is counted, and gone
}

// fillStates puts in jobs that have each come as far as a job can, and workers that were told something.
func (s *suite) fillStates() {
	must := func(err error) {
		s.Helper()
		if err != nil {
			s.Fatal(err)
		}
	}
	s.naming("t", "queued")
	s.cancel("t", s.queued("t").Job.ID)
	s.leased("t")
	_, running := s.leased("other")
	must(s.Running(s.ctx(), []jobs.Held{running}, s.now))
	_, again := s.leased("t")
	s.requeue(again, true)
	again.Attempt, again.Epoch = 2, 20
	s.lease(again, true) // it has it still
	_, canceled := s.leased("t")
	s.cancel("t", canceled.Job)
	_, ended := s.leased("t")
	r := s.success(1)
	r.Artifacts = []jobs.ArtifactResult{{Path: "large", Object: object("ended")}}
	s.finishAs(ended, jobs.StateEnded, r, true)
	_, failed := s.leased("t")
	one := 1
	r = s.success(1)
	r.ExitCode = &one
	s.finishAs(failed, jobs.StateEnded, r, true)
	open := s.batch("t", 2)
	s.admitBatch(open)
	s.endQueued(open.Jobs[0].Job.ID, 0, true)
	for name, f := range map[string]ledger.Flags{"cordoned": {Cordoned: true}, "draining": {Draining: true, DrainBy: s.tick()}} {
		_, err := s.Register(s.ctx(), name, s.now)
		must(err)
		must(s.Flag(s.ctx(), name, f))
	}
	paused := s.schedule("paused")
	paused.Paused = true
	paused.Spec.Files = []jobs.File{{Path: "x", Object: object("scheduled")}}
	s.put("other", paused)
	due := s.schedule("fired")
	s.put("t", due)
	moved, err := s.Fired(s.ctx(), "t", "fired", due.NextAt, due.NextAt.Add(1<<40), ended.Job, 3)
	if must(err); !moved {
		s.Fatal("a schedule that is due has not moved on")
	}
}

func (s *suite) exported() []byte {
	s.Helper()
	var b bytes.Buffer
	if err := s.Export(s.ctx(), &b); err != nil {
		s.Fatal("export:", err)
	}
	return b.Bytes()
}

func export(s *suite) {
	empty := s.exported()
	s.same("exported again", string(empty), string(s.exported()))
	s.fill()
	full := s.exported()
	s.same("exported again", string(full), string(s.exported()))
	if bytes.Count(full, []byte("\n")) < 20 || bytes.Equal(empty, full) {
		s.Errorf("an export of %d bytes", len(full))
	}
}

// importRefuses: what is not whole, or would come to something, changes nothing.
func importRefuses(s *suite) {
	s.queued("t")
	full := string(s.exported())
	refused := func(what, in string, want error) {
		s.Helper()
		before := s.everything()
		err := s.Import(s.ctx(), strings.NewReader(in))
		if err == nil || want != nil && !errors.Is(err, want) {
			s.Errorf("import of %s: %v", what, err)
		}
		s.same("everything after the import of "+what, before, s.everything())
	}
	refused("what comes to something", full, ledger.ErrNotEmpty)
	s.endQueued(s.entries()[0].ID, 0, true)
	for _, o := range s.outgoing(10) {
		s.published(o.ID)
	}
	s.forget(s.tick(), 10, 1)
	lines := strings.SplitAfter(full, "\n")
	for n := range lines[:len(lines)-1] {
		refused(fmt.Sprintf("the first %d lines", n), strings.Join(lines[:n], ""), nil)
	}
	refused("another checksum", strings.Replace(full, `"python"`, `"pythom"`, 1), nil)
	refused("another schema", strings.Replace(full, `"schema":`, `"schema":9`, 1), nil)
	refused("something after it", full+"\n", nil)
	refused("nonsense", "nonsense\n", nil)
	if err := s.Import(s.ctx(), strings.NewReader(full)); err != nil {
		s.Error("import:", err)
	}
	s.same("exported", full, string(s.exported()))
}

// Move fills one ledger and moves all of it to another, and from there to a third, all of them empty: what each exports is the same.
func Move(t *testing.T, open ...func(t *testing.T) ledger.Store) {
	s := newSuite(t, open[0])
	s.fill()
	want := s.exported()
	before, told := s.everything(), s.webhooked()
	for _, next := range open[1:] {
		now := s.now
		s = newSuite(t, next)
		s.now = now
		if err := s.Import(s.ctx(), bytes.NewReader(want)); err != nil {
			t.Fatal("import:", err)
		}
		s.same("exported", string(want), string(s.exported()))
		s.same("everything", before, s.everything())
		s.same("webhooks", told, s.webhooked())
	}
	last := s.outgoing(1000)
	s.queued("t")
	s.endQueued(s.entries()[len(s.entries())-1].ID, 0, true)
	if out := s.outgoing(1000); len(out) != len(last)+1 || out[len(last)].ID != last[len(last)-1].ID+2 {
		t.Errorf("the next event has the id %d after %d, and one that is gone", out[len(last)].ID, last[len(last)-1].ID)
	}
}
