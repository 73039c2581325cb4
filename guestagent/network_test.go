package guestagent_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/paddockvm/paddock/guestagent"
	"github.com/paddockvm/paddock/guestagent/wire"
)

func network(change func(*wire.Network)) wire.Network {
	n := wire.Network{Address: "169.254.100.2/30", Gateway: "169.254.100.1", GatewayMAC: "02:fc:00:00:00:01", DNS: []string{"169.254.100.1"}, MTU: 1400}
	change(&n)
	return n
}

func TestReadNetwork(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*wire.Network)
		wrong  bool
	}{
		"as it is":           {func(*wire.Network) {}, false},
		"address alone":      {func(n *wire.Network) { *n = wire.Network{Address: "10.0.0.2/8"} }, false},
		"both families":      {func(n *wire.Network) { n.Address6, n.Gateway6 = "fd00::2/64", "fe80::1" }, false},
		"three resolvers":    {func(n *wire.Network) { n.DNS = []string{"1.1.1.1", "fd00::1", "9.9.9.9"} }, false},
		"nothing":            {func(n *wire.Network) { *n = wire.Network{} }, true},
		"no prefix":          {func(n *wire.Network) { n.Address = "10.0.0.2" }, true},
		"prefix too long":    {func(n *wire.Network) { n.Address = "10.0.0.2/33" }, true},
		"IPv6 for IPv4":      {func(n *wire.Network) { n.Address = "fd00::2/64" }, true},
		"IPv4 for IPv6":      {func(n *wire.Network) { n.Address6 = "10.0.0.2/8" }, true},
		"IPv4 in IPv6":       {func(n *wire.Network) { n.Address6 = "::ffff:10.0.0.2/100" }, true},
		"a zone":             {func(n *wire.Network) { n.Address6, n.Gateway6 = "fd00::2/64", "fe80::1%eth0" }, true},
		"gateway of no name": {func(n *wire.Network) { n.Gateway = "router" }, true},
		"gateway of IPv6":    {func(n *wire.Network) { n.Gateway = "fe80::1" }, true},
		"a gateway alone":    {func(n *wire.Network) { n.Gateway6 = "fe80::1" }, true},
		"a short MAC":        {func(n *wire.Network) { n.GatewayMAC = "02:fc" }, true},
		"a long MAC":         {func(n *wire.Network) { n.GatewayMAC = "02:fc:00:00:00:00:00:01" }, true},
		"a resolver's name":  {func(n *wire.Network) { n.DNS = []string{"dns\nnameserver 6.6.6.6"} }, true},
		"a resolver's zone":  {func(n *wire.Network) { n.DNS = []string{"fe80::1%a"} }, true},
		"four resolvers":     {func(n *wire.Network) { n.DNS = strings.Split("1.1.1.1 1.1.1.2 1.1.1.3 1.1.1.4", " ") }, true},
		"MTU below":          {func(n *wire.Network) { n.MTU = 67 }, true},
		"MTU above":          {func(n *wire.Network) { n.MTU = 65536 }, true},
		"MTU negative":       {func(n *wire.Network) { n.MTU = -1 }, true},
		"endless":            {func(n *wire.Network) { n.Gateway = strings.Repeat("1", 1<<20) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := network(tt.change)
			err := guestagent.ReadNetwork(&n)
			if !tt.wrong {
				must(t, err)
				return
			}
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Kind != wire.ErrRequest || len(e.Message) > 500 {
				t.Errorf("error %v", err)
			}
		})
	}
}

// FuzzNetwork is a host that says anything of the network: it is read or refused.
func FuzzNetwork(f *testing.F) {
	for _, change := range []func(*wire.Network){func(*wire.Network) {}, func(n *wire.Network) { n.Address6 = "fd00::1/64" }} {
		b, err := json.Marshal(network(change))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var n wire.Network
		if json.Unmarshal(b, &n) != nil {
			return
		}
		if err := guestagent.ReadNetwork(&n); err == nil && (n.Address == "" || len(n.DNS) > 3) {
			t.Errorf("%+v was read", n)
		}
	})
}
