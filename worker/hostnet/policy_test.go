package hostnet_test

import (
	"testing"

	"github.com/paddockvm/paddock/worker/hostnet"
)

func TestInternetFirst(t *testing.T) {
	l := newLab(t)
	h := run(t, l.config(t))
	s := take(t, h)
	g := newGuest(t, s)
	if _, err := tcp(l.host, "", web, 80); err != nil {
		t.Fatal(err)
	}
	if as, err := tcp(g.ns, "", web, 80); err == nil {
		t.Fatal("reached as", as)
	}
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	as, err := tcp(g.ns, "", web, 80)
	if err != nil || as != hostAddr {
		t.Fatal(as, err)
	}
}
