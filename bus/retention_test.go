package bus_test

import (
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus"
	"github.com/paddockvm/paddock/bus/bustest"
	"github.com/paddockvm/paddock/jobs"
)

// TestEventsAreRetainedAsConfigured: by age and by bytes, the oldest going first; a dispatcher that is started with other bounds changes them.
func TestEventsAreRetainedAsConfigured(t *testing.T) {
	s := bustest.Start(t)
	js := bustest.JetStream(t, s.Plain())
	for _, c := range []struct {
		name      string
		age       time.Duration
		size      int64
		wantAge   time.Duration
		wantBytes int64
	}{
		{"what there is by itself", 0, 0, 72 * time.Hour, 8 << 30},
		{"less", 10 * time.Minute, 1 << 20, 10 * time.Minute, 1 << 20},
		{"more again", 96 * time.Hour, 1 << 30, 96 * time.Hour, 1 << 30},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := bus.Connect(t.Context(), bus.Config{URL: s.URL(), Name: "test", EventsAge: c.age, EventsBytes: c.size, Log: zerolog.Nop()})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			stream, err := js.Stream(t.Context(), jobs.StreamEvents)
			if err != nil {
				t.Fatal(err)
			}
			got := stream.CachedInfo().Config
			if got.MaxAge != c.wantAge || got.MaxBytes != c.wantBytes || got.MaxMsgs > 0 || got.MaxMsgsPerSubject > 0 || got.Discard.String() != "DiscardOld" {
				t.Errorf("kept for %v and up to %d bytes, want %v and %d: %+v", got.MaxAge, got.MaxBytes, c.wantAge, c.wantBytes, got)
			}
		})
	}
}
