package hostnet_test

import (
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/paddockvm/paddock/worker/hostnet"
)

// bystander is somebody else that the host forwards for: whom a firewall keeps out, where it lets machines through.
func bystander(t *testing.T, l *lab) *os.File {
	t.Helper()
	ns := namespace(t)
	wire(t, ns, "eth0", l.host, "by0")
	address(t, ns, "eth0", "45.30.0.2/24")
	address(t, l.host, "by0", "45.30.0.1/24")
	route(t, ns, "0.0.0.0/0", "45.30.0.1")
	route(t, l.internet, "45.30.0.0/24", hostAddr)
	for _, name := range []string{"by0", "up0"} {
		must(t, in(l.host, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/forwarding", []byte("1"), 0) }))
	}
	reaches(t, "somebody else", ns, every(web))
	return ns
}

func (l *lab) nft(t *testing.T) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(l.host.Fd())))
	must(t, err)
	return c
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

// docker makes what Docker makes of FORWARD by iptables on nftables: the policy drop, and its chains for its own networks.
func docker(t *testing.T, l *lab) {
	t.Helper()
	c := l.nft(t)
	drop := nftables.ChainPolicyDrop
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := c.AddTable(&nftables.Table{Name: "filter", Family: family})
		forward := c.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		user := c.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: table})
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: verdict(expr.VerdictJump, user.Name)})
		c.AddRule(&nftables.Rule{Table: table, Chain: user, Exprs: verdict(expr.VerdictReturn, "")})
	}
	must(t, c.Flush())
}

// firewalld makes what firewalld makes of it: a chain of its own table, after everybody's, that ends in a reject. Made again, it is as after
// a reload: nothing of anybody else is left in it.
func firewalld(t *testing.T, l *lab) {
	t.Helper()
	c := l.nft(t)
	table := &nftables.Table{Name: "firewalld", Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	after := nftables.ChainPriority(10)
	forward := c.AddChain(&nftables.Chain{Name: "filter_FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: &after})
	c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{6, 0, 0, 0}, Xor: make([]byte, 4)}, // established, related
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: []expr.Any{&expr.Reject{Type: 2, Code: 3}}}) // icmpx admin-prohibited
	must(t, c.Flush())
}

// TestBesideFirewalls has look-alikes, which do to nobody's host what firewalld and Docker would: those are TestBesideRealFirewalls'.
func TestBesideFirewalls(t *testing.T) {
	t.Parallel()
	for name, firewall := range map[string]func(*testing.T, *lab){"docker": docker, "firewalld": firewalld} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			by := bystander(t, l)
			firewall(t, l)
			h := run(t, l.config(t))
			s := take(t, h)
			g := newGuest(t, s)
			allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
			if p, err := hostnet.Examine(l.config(t)); err != nil || len(p) > 0 {
				t.Errorf("a look from outside finds %q, %v", p, err)
			}
			kept := func() {
				t.Helper()
				isRefused(t, "somebody else, whom the firewall should keep out,", by, every(web))
			}
			kept()
			reaches(t, "the guest", g.ns, every(web))
			if p := h.Problems(); len(p) > 0 {
				t.Errorf("problems: %q", p)
			}
			firewall(t, l) // again, as after a restart
			if name == "firewalld" {
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
					if _, err := tcp(g.ns, "", web, 80, denied); err == nil {
						break
					}
					if time.Now().After(end) {
						t.Fatal("after a reload the guest does not get out again")
					}
				}
			}
			reaches(t, "the guest", g.ns, every(web))
			kept()
			always(t, l, g)
		})
	}
}

// TestNoFirewall has somebody else get out as before, and the host's rules come back when somebody flushes all.
func TestNoFirewall(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	by := bystander(t, l)
	h := run(t, l.config(t))
	s := take(t, h)
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	reaches(t, "somebody else", by, every(web))
	c := l.nft(t)
	c.FlushRuleset()
	must(t, c.Flush())
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if _, err := tcp(g.ns, "", web, 80, denied); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("after a flush the guest does not get out again")
		}
	}
}

// A look at a host changes nothing of it, and finds that no way leads out.
func TestExamine(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg := l.config(t)
	cfg.Uplink = "nowhere"
	p, err := hostnet.Examine(cfg)
	if err != nil || len(p) != 1 || !strings.Contains(p[0].What, "find uplink nowhere") || !strings.Contains(p[0].Remedy, "--network-uplink") {
		t.Errorf("%q, %v", p, err)
	}
	if tables, err := l.nft(t).ListTables(); err != nil || len(tables) > 0 {
		t.Errorf("it has made %d tables, %v", len(tables), err)
	}
}

// TestOwnedTable has a firewalld that lets nobody change its table: what to do about it is said.
func TestOwnedTable(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v: no table that has an owner is tested (apt-get install nftables)", err)
	}
	cmd := exec.Command("nft", "-i") // its socket owns the table, and with it the table goes
	stdin, err := cmd.StdinPipe()
	must(t, err)
	must(t, in(l.host, cmd.Start))
	defer cmd.Wait()
	defer stdin.Close()
	_, err = io.WriteString(stdin, `add table inet firewalld { flags owner; }
add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }
add rule inet firewalld filter_FORWARD drop
`)
	must(t, err)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		chain := &nftables.Chain{Name: "filter_FORWARD", Table: &nftables.Table{Name: "firewalld", Family: nftables.TableFamilyINet}}
		if rules, err := l.nft(t).GetRules(chain.Table, chain); err == nil && len(rules) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nft made no table")
		}
	}
	h := run(t, l.config(t))
	if p := h.Problems(); len(p) != 1 || !strings.Contains(p[0].Remedy, "firewall-cmd --permanent --zone=trusted --add-interface=pdk+") {
		t.Errorf("problems: %q", p)
	}
	found, err := hostnet.Examine(l.config(t))
	if must(t, err); !slices.Equal(found, h.Problems()) {
		t.Errorf("a look from outside finds %q", found)
	}
	s := take(t, h)
	g := newGuest(t, s)
	allow(t, s, hostnet.Policy{Kind: hostnet.Internet})
	refused(t, g, every(web)) // so it is one
}
