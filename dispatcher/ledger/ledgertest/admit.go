package ledgertest

import (
	"errors"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func admit(s *suite) {
	a := s.queued("t")
	s.same("job", a.Job, s.job("t", a.Job.ID))
	s.same("open", []ledger.Entry{a.Entry}, s.entries())
	s.same("outbox", 0, len(s.told()))

	b := s.admission("t")
	b.Job.Labels, b.Job.Spec.Labels, b.Job.RunAt = nil, nil, time.Time{}
	b.Entry = ledger.Entry{ID: b.Entry.ID, Tenant: "t", Image: b.Entry.Image, State: jobs.StateQueued, AcceptedAt: b.Entry.AcceptedAt, ExpiresAt: b.Entry.ExpiresAt}
	s.same("taken", (*ledger.Taken)(nil), s.admit(b))
	s.same("job with little in it", b.Job, s.job("t", b.Job.ID))
	s.same("open", []ledger.Entry{a.Entry, b.Entry}, s.entries())
}

func admitTakenID(s *suite) {
	a := s.queued("t")
	b := s.admission("t")
	b.Job.ID, b.Entry.ID, b.Key = a.Job.ID, a.Job.ID, "key"
	s.same("taken", &ledger.Taken{Job: unspecced(a.Job), Hash: a.Hash}, s.admit(b))
	s.same("job", a.Job, s.job("t", a.Job.ID))
	s.same("open", []ledger.Entry{a.Entry}, s.entries())

	c := s.admission("t")
	c.Key = "key"
	s.same("taken: the key of what was not admitted is free", (*ledger.Taken)(nil), s.admit(c))

	other := s.admission("other")
	other.Job.ID, other.Entry.ID = a.Job.ID, a.Job.ID
	s.same("taken: another tenant's job is not shown", &ledger.Taken{}, s.admit(other))
	s.same("job", a.Job, s.job("t", a.Job.ID))
	if _, err := s.Get(s.ctx(), "other", a.Job.ID); !errors.Is(err, ledger.ErrNotFound) {
		s.Errorf("get: %v, want ErrNotFound", err)
	}

	h := jobs.Held{Job: a.Job.ID, Attempt: 1, Epoch: 1}
	at := s.lease(h, true)
	r := s.finish(h, true)
	j := unspecced(a.Job)
	j.State, j.Attempt, j.Worker, j.LeasedAt, j.EndedAt, j.Result = jobs.StateEnded, 1, "a", at, r.EndedAt, &r
	s.same("taken: by a job that has ended", &ledger.Taken{Job: j, Hash: a.Hash}, s.admit(a))
}

func admitTakenKey(s *suite) {
	a := s.admission("t")
	a.Key = "key"
	s.same("taken", (*ledger.Taken)(nil), s.admit(a))
	b := s.admission("t")
	b.Key = "key"
	want := &ledger.Taken{Job: unspecced(a.Job), Hash: a.Hash}
	s.same("taken", want, s.admit(b))
	s.same("taken again", want, s.admit(b))
	s.same("taken: by itself", want, s.admit(a))
	if _, err := s.Get(s.ctx(), "t", b.Job.ID); !errors.Is(err, ledger.ErrNotFound) {
		s.Errorf("get: %v, want ErrNotFound", err)
	}
	s.same("open", []ledger.Entry{a.Entry}, s.entries())

	b.Key = "Key"
	s.same("taken: another key", (*ledger.Taken)(nil), s.admit(b))
	other := s.admission("other")
	other.Key = "key"
	s.same("taken: another tenant's key", (*ledger.Taken)(nil), s.admit(other))
}

// admitKeyBefore: a key may have another form than a dispatcher of before has stored, which holds for the same body alone.
func admitKeyBefore(s *suite) {
	a := s.admission("t")
	a.Key = "old"
	s.admit(a)
	want := &ledger.Taken{Job: unspecced(a.Job), Hash: a.Hash}
	again := func() ledger.Admission {
		b := s.admission("t")
		b.Hash, b.Key, b.KeyBefore = a.Hash, "new", "old"
		return b
	}
	s.same("taken", want, s.admit(again()))
	batch := s.batch("t", 2)
	batch.Key = "batch"
	one := again()
	batch.Jobs[0].Hash, batch.Jobs[0].Key, batch.Jobs[0].KeyBefore = one.Hash, one.Key, one.KeyBefore
	got := s.admitBatch(batch)
	s.same("taken: in a batch", []*ledger.Taken{want, nil}, got.Each)
	s.same("jobs of the batch", 1, got.Batch.Total)
	got = s.admitBatch(batch)
	s.same("taken: in a batch again", []*ledger.Taken{want, {Job: unspecced(batch.Jobs[1].Job), Hash: batch.Jobs[1].Hash}}, got.Each)

	other := again()
	other.Hash = "another"
	s.same("taken: another body", (*ledger.Taken)(nil), s.admit(other))
	s.same("taken: the new form is found first by whoever has it", &ledger.Taken{Job: unspecced(other.Job), Hash: other.Hash}, s.admit(func() ledger.Admission {
		b := again()
		b.Hash = other.Hash
		return b
	}()))
	s.now = a.KeyUntil.Add(time.Second)
	late := again()
	late.Key = "late"
	s.same("taken: after the key's end", (*ledger.Taken)(nil), s.admit(late))
}

func admitKeyExpiry(s *suite) {
	a := s.admission("t")
	a.Key, a.KeyUntil = "key", s.now.Add(time.Minute)
	s.admit(a)
	s.now = a.KeyUntil.Add(-10 * time.Millisecond)
	b := s.admission("t")
	b.Key = "key"
	s.same("taken: just before the key's end", &ledger.Taken{Job: unspecced(a.Job), Hash: a.Hash}, s.admit(b))
	s.now = a.KeyUntil
	c := s.admission("t")
	c.Key = "key"
	s.same("taken: after the key's end", (*ledger.Taken)(nil), s.admit(c))
	d := s.admission("t")
	d.Key = "key"
	s.same("taken: the key is the new job's", &ledger.Taken{Job: unspecced(c.Job), Hash: c.Hash}, s.admit(d))
	s.same("open", []ledger.Entry{a.Entry, c.Entry}, s.entries())
}
