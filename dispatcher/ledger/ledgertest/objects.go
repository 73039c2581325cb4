package ledgertest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/paddockvm/paddock/dispatcher/ledger"
	"github.com/paddockvm/paddock/jobs"
)

func object(name string) *jobs.ObjectRef {
	return &jobs.ObjectRef{Name: name, SHA256: strings.Repeat("0", 64)}
}

// naming is a job whose spec names an object.
func (s *suite) naming(tenant, name string) ledger.Admission {
	s.Helper()
	a := s.admission(tenant)
	a.Job.Spec.Files = []jobs.File{{Path: "none"}, {Path: "x", Object: object(name)}}
	s.admit(a)
	return a
}

func (s *suite) wantNamed(want ...string) {
	s.Helper()
	var got []string
	if err := s.NamedObjects(s.ctx(), func(tenant string, ref jobs.ObjectRef) { got = append(got, tenant+" "+ref.Name) }); err != nil {
		s.Fatal("named objects:", err)
	}
	slices.Sort(got)
	slices.Sort(want)
	s.same("named objects", want, slices.Compact(got))
}

func namedObjects(s *suite) {
	s.queued("t")
	s.wantNamed()
	in := s.naming("t", "in")
	s.naming("other", "in")
	plain := s.schedule("none")
	s.put("t", plain)
	named := s.schedule("s")
	named.Spec.Files = []jobs.File{{Path: "x", Object: object("of a schedule")}}
	s.put("t", named)
	s.wantNamed("t in", "other in", "t of a schedule")

	h := jobs.Held{Job: in.Job.ID, Attempt: 1, Epoch: 10}
	s.lease(h, true)
	s.wantNamed("t in", "other in", "t of a schedule")
	r := s.success(1)
	r.Artifacts = []jobs.ArtifactResult{{Path: "small"}, {Path: "large", Object: object("out")}}
	s.finishAs(h, jobs.StateEnded, r, true)
	s.wantNamed("t out", "other in", "t of a schedule")

	dead := s.naming("t", "of a dead one")
	h = jobs.Held{Job: dead.Job.ID, Attempt: 1, Epoch: 11}
	s.lease(h, true)
	s.finishAs(h, jobs.StateDead, s.success(1), true)
	s.wantNamed("t out", "other in", "t of a schedule", "t of a dead one")

	b := ledger.BatchAdmission{ID: s.id(), Tenant: "t", AcceptedAt: s.now, Hash: "h"}
	for i := range 3 {
		a := s.admission("t")
		a.Job.Spec.Files = []jobs.File{{Path: "x", Object: object(fmt.Sprint("of a batch ", i))}}
		b.Jobs = append(b.Jobs, a)
	}
	s.admitBatch(b)
	s.wantNamed("t out", "other in", "t of a schedule", "t of a dead one", "t of a batch 0", "t of a batch 1", "t of a batch 2")
}
