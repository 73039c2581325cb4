package hostnet

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// Problem is what on a host keeps machines from being reached or from reaching what they may, in words for an operator.
type Problem struct {
	What   string
	Remedy string // what to do about it
}

func (p Problem) String() string { return p.What + ": " + p.Remedy }

var ownedTable = Problem{
	"firewalld drops machines' packets and lets nobody change its table",
	"firewall-cmd --permanent --zone=trusted --add-interface=" + linkPrefix + "+ && firewall-cmd --reload",
}

func noUplink(err error) Problem {
	return Problem{err.Error(), "name the interface that leads out with --network-uplink"}
}

// Examine gives the problems that a host of this configuration would have, and changes nothing: it looks at the network namespace of cfg.Netns
// only. Chains of others that it would tell to let machines' packets through are no problem.
func Examine(cfg Config) (problems []Problem, err error) {
	if cfg, err = cfg.complete(); err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	h := &Host{cfg: cfg}
	if h.ns, err = openNetns(cfg.Netns); err != nil {
		return nil, fmt.Errorf("hostnet: open the host's network namespace: %w", err)
	}
	defer h.ns.Close()
	conn, err := h.nft(h.ns)
	if err != nil {
		return nil, fmt.Errorf("hostnet: %w", err)
	}
	chains, err := h.foreign(conn)
	if err != nil {
		return nil, fmt.Errorf("hostnet: list the host's chains: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return nil, fmt.Errorf("hostnet: list the host's tables: %w", err)
	}
	if slices.ContainsFunc(chains, func(c *nftables.Chain) bool { return isFirewalld(c) && owned(tables, c.Table) }) {
		problems = append(problems, ownedTable)
	}
	problems = append(problems, h.legacy(len(chains) > 0)...)
	if err := h.uplink(); err != nil {
		problems = append(problems, noUplink(err))
	}
	return problems, nil
}

// ownedFlag is NFT_TABLE_F_OWNER of linux/netfilter/nf_tables.h. The kernel sends flags in network order, and google/nftables v0.3 takes them
// for the host's: as there are no flags but the lowest few, either is looked for.
const ownedFlag = 1<<1 | 1<<25

// owned tells whether only the process that has made a table may change it.
func owned(tables []*nftables.Table, t *nftables.Table) bool {
	return slices.ContainsFunc(tables, func(o *nftables.Table) bool {
		return o.Name == t.Name && o.Family == t.Family && o.Flags&ownedFlag != 0
	})
}
