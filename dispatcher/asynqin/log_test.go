package asynqin_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
	"github.com/paddockvm/paddock/test/bubble"
)

// An hour without Redis is no flood in the log, however many tenants there are, and is told of all along.
func TestLogWhileRedisIsAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		all := asynqin.Loggers(zerolog.New(&out).Level(zerolog.InfoLevel), 100)
		lines := func() int { return bytes.Count(out.Bytes(), []byte("\n")) }
		last := 0
		for range 60 {
			for range 60 {
				for _, l := range all {
					l.Error("redis eval error: connection refused")
				}
				time.Sleep(time.Second)
			}
			if lines() == last {
				t.Fatal("a minute is not told of")
			}
			last = lines()
		}
		if last > 400 {
			t.Errorf("%d lines", last)
		}
	})
}
