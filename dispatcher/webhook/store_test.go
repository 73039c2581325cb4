package webhook_test

import (
	"testing"

	"github.com/paddockvm/paddock/dispatcher/webhook/webhooktest"
)

func TestStore(t *testing.T) {
	webhooktest.TestStore(t, func(*testing.T) webhooktest.Rig {
		s := webhooktest.NewStore()
		return webhooktest.Rig{Store: s, AddHook: s.Hook}
	})
}
