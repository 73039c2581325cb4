package bus_test

import (
	"testing"
	"time"

	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// A client may give a batch and a job one id. What is told of the one is no repeat of what is told of the other.
func TestProgressOfABatchWithAJobsID(t *testing.T) {
	s := bustest.Start(t)
	b := s.Connect()
	js := bustest.JetStream(t, s.Plain())
	id := jobs.NewID()
	bustest.Publish(t, b, bustest.Final(id, 0, 1))
	if err := b.Progress(t.Context(), jobs.Batch{ID: id, Tenant: "default", Total: 1, Ended: 1, EndedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	st, err := js.Stream(t.Context(), jobs.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{jobs.EventSubject("default", id), jobs.BatchEventSubject("default", id)} {
		if _, err := st.GetLastMsgForSubject(t.Context(), subject); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
}
