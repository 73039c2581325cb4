package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// tableName is of our tables, the host's and the slots'. Interfaces of the host that lead to slots are named linkPrefix and the slot's index.
const (
	tableName  = "paddock"
	linkPrefix = "pdk"
)

// The kernel's address types (linux/rtnetlink.h) that a slot may not send to: the host itself, and everybody.
var notUnicast = []uint32{unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST, unix.RTN_MULTICAST}

func (h *Host) nft(ns *os.File) (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
}

// hostRules makes the host's own table anew, all at once: as many rules however many slots there are. Slots reach what is behind the
// uplink, not the host, not each other; nobody reaches them. It says again what slots' own rules say, for the day that those have a hole.
func (h *Host) hostRules() error {
	conn, err := h.nft(h.ns)
	if err != nil {
		return err
	}
	t := &table{conn: conn, Table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}}
	conn.AddTable(t.Table)
	conn.DelTable(t.Table)
	conn.AddTable(t.Table)

	raw := t.hook("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, nftables.ChainPolicyAccept)
	input := t.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	forward := t.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	output := t.hook("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, nftables.ChainPolicyAccept)
	nat := t.hook("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, nftables.ChainPolicyAccept)

	from, into := iifs(linkPrefix), oifs(linkPrefix)
	for _, kind := range notUnicast { // before anybody's DNAT makes another address of the host's
		t.rules(raw, from.and(rule{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, eq(binaryutil.NativeEndian.PutUint32(kind))}, drop()))
	}
	for _, r := range h.ranges() {
		t.rules(raw, from.and(outside(source, r), drop()))
		t.rules(nat, inside(source, r).and(notOIFs(linkPrefix), rule{&expr.Masq{}}))
	}
	if !h.cfg.IPv6 {
		t.rules(raw, from.and(ipv6(), drop()))
	}
	t.rules(input, from.and(drop()))
	t.rules(forward, from.and(into, drop()))
	if h.cfg.Uplink != "" {
		t.rules(forward, from.and(notOIF(h.cfg.Uplink), drop()))
	}
	t.rules(forward, into.and(ctState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept()), into.and(drop()))
	t.rules(output, into.and(ctState(expr.CtStateBitRELATED), accept()), into.and(drop())) // the host's word on a slot's packets, as that one was too large
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make the host's rules: %w", err)
	}
	return nil
}

func (h *Host) ranges() []netip.Prefix {
	if h.cfg.IPv6 {
		return []netip.Prefix{h.cfg.Range, h.cfg.Range6}
	}
	return []netip.Prefix{h.cfg.Range}
}

// dropHostRules takes away what hostRules and passForeign made.
func (h *Host) dropHostRules() error {
	conn, err := h.nft(h.ns)
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	conn.AddTable(t) // so that there is one to delete
	conn.DelTable(t)
	err = conn.Flush()
	chains, listed := h.foreign(conn)
	for _, c := range chains {
		rules, got := ours(conn, c)
		listed = errors.Join(listed, got)
		for _, r := range rules {
			listed = errors.Join(listed, conn.DelRule(r))
		}
	}
	return errors.Join(err, listed, conn.Flush())
}

// foreign are the chains of others that let no forwarded packet through unless told. What one chain accepts the next one still drops, so
// that a rule of ours in ours is no help (nft(8), "accept"): Docker's and ufw's FORWARD has the policy drop, firewalld's ends in a reject.
func (h *Host) foreign(conn *nftables.Conn) ([]*nftables.Chain, error) {
	all, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(c *nftables.Chain) bool {
		if c.Table.Name == tableName || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Type != nftables.ChainTypeFilter {
			return true
		}
		switch c.Table.Family {
		case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
			return !isFirewalld(c) && (c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop)
		}
		return true
	}), nil
}

func isFirewalld(c *nftables.Chain) bool { return c.Table.Name == "firewalld" }

// comment marks our rules in others' chains.
func comment() []byte { return userdata.AppendString(nil, userdata.TypeComment, "paddock") }

// ours are our rules in a chain of others.
func ours(conn *nftables.Conn, c *nftables.Chain) ([]*nftables.Rule, error) {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(rules, func(r *nftables.Rule) bool { return !bytes.Equal(r.UserData, comment()) }), nil
}

// passForeign lets the slots' packets through others' chains that drop what nobody named: at their end, so that what their rules drop
// stays dropped, and at the head of firewalld's, whose last rule rejects. The rules are such as iptables writes itself, so that it still
// reads its table. Their owners may throw them out again (firewalld does when it reloads): Run looks after them.
func (h *Host) passForeign(ctx context.Context) (problems []Problem, err error) {
	conn, err := h.nft(h.ns)
	if err != nil {
		return nil, err
	}
	chains, err := h.foreign(conn)
	if err != nil {
		return nil, fmt.Errorf("list the host's chains: %w", err)
	}
	for _, c := range chains {
		have, err := ours(conn, c)
		if err != nil {
			return problems, err
		}
		if len(have) == 2 {
			continue
		}
		for _, r := range have {
			if err := conn.DelRule(r); err != nil {
				return problems, err
			}
		}
		for _, match := range []rule{iifs(linkPrefix), oifs(linkPrefix)} {
			r := &nftables.Rule{Table: c.Table, Chain: c, UserData: comment(), Exprs: match.and(rule{&expr.Counter{}}, accept())}
			if isFirewalld(c) {
				conn.InsertRule(r)
			} else {
				conn.AddRule(r)
			}
		}
		switch err := conn.Flush(); {
		case err == nil:
			zerolog.Ctx(ctx).Info().Str("table", c.Table.Name).Str("chain", c.Name).Msg("machines' packets let through a chain that drops by default")
		case errors.Is(err, unix.EPERM) && isFirewalld(c):
			problems = append(problems, ownedTable)
		default:
			problems = append(problems, Problem{
				fmt.Sprintf("chain %s of table %s drops machines' packets and could not be told to let them through: %v", c.Name, c.Table.Name, err),
				"let what comes from and goes to interfaces " + linkPrefix + "* through it",
			})
		}
	}
	return problems, nil
}

// legacy finds what other firewalls there may be that we cannot see into.
func (h *Host) legacy(dropped bool) (problems []Problem) {
	err := within(int(h.ns.Fd()), func() error {
		names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names") // absent where no legacy iptables is in use
		if err == nil && slices.Contains(strings.Fields(string(names)), "filter") {
			problems = append(problems, Problem{
				"legacy iptables is in use, and its rules cannot be seen from here",
				"where its FORWARD drops, iptables-legacy -I FORWARD -i " + linkPrefix + "+ -j ACCEPT; iptables-legacy -I FORWARD -o " + linkPrefix + "+ -j ACCEPT",
			})
		}
		if bridged, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables"); h.cfg.Bridge != nil && dropped && err == nil && strings.TrimSpace(string(bridged)) == "1" {
			problems = append(problems, Problem{
				"net.bridge.bridge-nf-call-iptables is 1 and a firewall drops what is forwarded, so also what is bridged between machines and the LAN",
				"sysctl net.bridge.bridge-nf-call-iptables=0, or let " + h.cfg.Bridge.Name + " through",
			})
		}
		return nil
	})
	if err != nil {
		problems = append(problems, Problem{"the host's network namespace could not be entered: " + err.Error(), "run as root"})
	}
	return problems
}

// look puts right what others may have changed since, and keeps what it could not as the host's problems.
func (h *Host) look(ctx context.Context) error {
	conn, err := h.nft(h.ns)
	if err != nil {
		return err
	}
	if _, err := conn.ListTableOfFamily(tableName, nftables.TableFamilyINet); err != nil {
		zerolog.Ctx(ctx).Warn().Msg("the host's rules for machines were gone; they are made again")
		if err := h.locks.change(ctx, func(bool) error { return h.hostRules() }); err != nil {
			return err
		}
	}
	problems, err := h.passForeign(ctx)
	if err != nil {
		return err
	}
	foreign, err := h.foreign(conn)
	if err != nil {
		return err
	}
	problems = append(problems, h.legacy(len(foreign) > 0)...)
	if err := h.uplink(); err != nil {
		problems = append(problems, noUplink(err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range problems {
		if !slices.Contains(h.problems, p) {
			zerolog.Ctx(ctx).Error().Stringer("problem", p).Msg("machines' networks may not work")
		}
	}
	h.problems = problems
	return nil
}
