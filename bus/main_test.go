package bus_test

import (
	"testing"

	"github.com/paddockvm/paddock/test/leak"
)

func TestMain(m *testing.M) {
	leak.VerifyTestMain(m, leak.NATS()...)
}
