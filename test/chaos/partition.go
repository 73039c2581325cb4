package chaos

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// partition takes processes from each other: with connections that break, or that seem to live and let nothing through.
func partition(f *fleet, r *rand.Rand) *fault {
	if r.IntN(3) == 0 {
		return partitionNodes(f, r)
	}
	return partitionMember(f, r)
}

// partitionMember takes a dispatcher or a worker from all that it connects to, NATS servers and the database, or from some of that.
func partitionMember(f *fleet, r *rand.Rand) *fault {
	p := pick(r, pick(r, [][]*process{f.dispatchers, f.workers}))
	links := f.linksOf(p.name)
	switch {
	case r.IntN(3) > 0: // from all
	case len(links) > nodeCount && r.IntN(2) == 0:
		links = links[nodeCount:] // the database
	case len(links) > nodeCount:
		links = links[:nodeCount]
	default:
		links = links[:1+r.IntN(nodeCount-1)]
	}
	var to []string
	for _, l := range links {
		to = append(to, l.to)
	}
	return severed(r, links, []*process{p}, p.name+" and "+strings.Join(to, ", "))
}

// partitionNodes takes a NATS server from the others, or from one of them. Whoever is connected to it stays so.
func partitionNodes(f *fleet, r *rand.Rand) *fault {
	i := r.IntN(len(f.nodes))
	apart, rest := f.nodes[i], slices.Delete(slices.Clone(f.nodes), i, i+1)
	if r.IntN(2) == 0 {
		rest = []*process{pick(r, rest)}
	}
	var links []*link
	var to []string
	for _, n := range rest {
		to = append(to, n.name)
		for _, l := range f.links { // servers connect to each other both ways
			if l.from == apart.name && l.to == n.name || l.from == n.name && l.to == apart.name {
				links = append(links, l)
			}
		}
	}
	return severed(r, links, append(rest, apart), apart.name+" and "+strings.Join(to, ", "))
}

// severed is the fault that links are cut, or silent.
func severed(r *rand.Rand, links []*link, on []*process, whom string) *fault {
	how, sever := "cut", func(l *link) error { l.cut(); return nil }
	if r.IntN(2) == 0 {
		how, sever = "silence", (*link).silence
	}
	return &fault{
		on: on, what: how + " between " + whom, last: between(r, time.Second, 2*(leaseTTL+leaseGrace)),
		hurt: func(context.Context) error { return each(links, sever) },
		heal: func(context.Context) error { return each(links, (*link).renew) },
	}
}
