package match

import (
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// A tenant may have a kind of item for each that it has queued, none of which anybody has the room for, and its turn may be next all the while. A
// match looks at so many of an account's own stand and no more: they are aside then, and the next matches, which come soon, look at those behind them.
// What is aside comes back when all has been looked at.
const (
	mostLooked = 256
	lookAgain  = int64(5 * time.Millisecond)
)

// partly is what matches have looked at a part of, in a pool.
type partly struct {
	accounts []*account      // those of which groups are aside
	left     map[string]left // by worker that asked
	again    bool            // workers have got more room meanwhile: what is aside is to be looked at once more
}

// looked is how far matches have come with an account's own stand.
type looked struct {
	n       int    // groups that could not go, in a match
	in      uint64 // which
	aside   []*group
	through bool // the rest was looked at since
}

// left is what a match has left of a worker.
type left struct {
	slots int
	free  jobs.Resources
}

// tire notes that a group of an account's own stand cannot go, and ends the account's turn in this match when they are too many.
func (r *round) tire(g *group) {
	a := g.account
	if r.tired = append(r.tired, g); a.looked.in != r.round {
		a.looked.n, a.looked.in = 0, r.round
	}
	if a.looked.n++; a.looked.n < r.mostLooked || a.own.groups.Len() == 0 {
		return
	}
	a.own.passed = r.round
	r.stands = append(r.stands, &a.own)
	r.settleStand(a.pool, &a.own)
	r.comeBack(r.now + lookAgain)
}

// rest keeps aside what accounts have had looked at whose turn was ended. All that is aside in the pool comes back together, when nothing is left to
// be looked at: one by one accounts would have each other looked at for ever.
func (r *round) rest(p *pool) {
	for _, g := range r.tired {
		a := g.account
		if a.own.passed != r.round {
			r.groups = append(r.groups, g)
			continue
		}
		if len(a.looked.aside) == 0 {
			p.partly.accounts = append(p.partly.accounts, a)
		}
		g.aside = true
		a.looked.aside, a.looked.through = append(a.looked.aside, g), false
	}
	r.tired = r.tired[:0]
	all := true
	for _, a := range p.partly.accounts {
		a.looked.through = a.looked.through || a.own.groups.Len() == 0
		all = all && (a.looked.through || a.tenant.full)
	}
	if !all {
		p.partly.left = map[string]left{}
		for _, w := range r.asking {
			if poolName(w.Pool) == p.name {
				p.partly.left[w.Name] = left{w.Slots, w.Free}
			}
		}
		return
	}
	for _, a := range p.partly.accounts {
		for _, g := range a.looked.aside {
			g.aside = false
			r.settleGroup(g)
		}
		a.looked.aside = nil
	}
	if p.partly.again {
		r.comeBack(r.now + lookAgain)
	}
	p.partly = partly{}
}

// grown tells whether a worker of the pool that asks has more room than the last match has left it.
func (r *round) grown(p *pool) bool {
	for _, n := range r.open {
		w := &r.asking[n]
		if was, asked := p.partly.left[w.Name]; !asked || w.Slots > was.slots || !within(w.Free, was.free) {
			return true
		}
	}
	return false
}
