package bus_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	// nats.go v1.55.0: where an object is stored so quickly that the Put's own context is cleaned up before this goroutine runs, it
	// waits on a channel that is nil by then.
	leak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/nats-io/nats.go/jetstream.(*jetStream).resetPendingAcksOnReconnect"))
}
