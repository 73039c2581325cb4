package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Policy says which snapshots go; a zero field asks for nothing.
type Policy struct {
	// Keep is how many of each tenant's are kept, the newest.
	Keep int
	// MaxAge and MaxBytes bound their age, and what all of them take on the disk: the oldest go first.
	MaxAge   time.Duration
	MaxBytes int64
	// KeepTagged keeps those with a tag, whatever else is said. They count.
	KeepTagged bool
}

// bounds tells whether the policy bounds what a new snapshot adds to.
func (p Policy) bounds() bool { return p.Keep > 0 || p.MaxBytes > 0 }

// Collect removes the snapshots that the policy does not keep, but for those in use and the ancestors of those that stay; then what was
// left behind by those that died, and the flattened templates that nobody uses. It gives what it has removed, or, where dry, would.
func (n *Snapshots) Collect(ctx context.Context, p Policy) ([]Snapshot, error) {
	return n.collect(ctx, p, 0)
}

// collect is Collect that leaves so many of the templates that nobody uses, those that were used last.
func (n *Snapshots) collect(ctx context.Context, p Policy, flats int) ([]Snapshot, error) {
	release, err := n.alone(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	doomed, err := n.doomed(p)
	if err != nil {
		return nil, err
	}
	var removed []Snapshot
	var errs []error
	for _, s := range doomed {
		switch err := n.remove(s.ID); {
		case err == nil:
			removed = append(removed, s)
		case !errors.Is(err, ErrInUse): // somebody has taken it up just now
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(append(errs, n.sweep(), n.removeFlats(ctx, flats, ""))...)
}

// Doomed gives what Collect would remove.
func (n *Snapshots) Doomed(ctx context.Context, p Policy) ([]Snapshot, error) {
	release, err := n.shared(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return n.doomed(p)
}

// doomed gives the snapshots to remove, children before their parents.
func (n *Snapshots) doomed(p Policy) ([]Snapshot, error) {
	list, err := n.newestFirst()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, s := range list {
		if used[s.ID], err = n.inUse(s.ID); err != nil {
			return nil, err
		}
	}
	stay := p.wanted(list, used)
	return slices.DeleteFunc(list, func(s Snapshot) bool { return stay[s.ID] }), nil
}

// keeps tells whether the policy keeps all snapshots that there are.
func (n *Snapshots) keeps(ctx context.Context, p Policy) (bool, error) {
	release, err := n.shared(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	list, err := n.newestFirst()
	return len(p.wanted(list, nil)) == len(list), err
}

func (n *Snapshots) newestFirst() ([]Snapshot, error) {
	list, err := n.read()
	if err != nil {
		return nil, fmt.Errorf("one that cannot be read may be the difference to any; remove it first: %w", err)
	}
	slices.Reverse(list)
	return list, nil
}

// wanted are the snapshots of a list, the newest first, that the policy keeps, or somebody uses, and their ancestors: what those take counts with
// the first that needs them.
func (p Policy) wanted(list []Snapshot, used map[string]bool) (stay map[string]bool) {
	stay = map[string]bool{}
	of := map[string]Snapshot{}
	for _, s := range list {
		of[s.ID] = s
	}
	count, bytes := map[string]int{}, int64(0)
	for _, s := range list {
		count[s.Tenant]++
		more, with := int64(0), []string(nil)
		for at, there := s, true; there && !stay[at.ID] && len(with) <= maxLine; at, there = of[at.Parent] {
			more, with = more+at.StoredBytes, append(with, at.ID)
		}
		unwanted := p.Keep > 0 && count[s.Tenant] > p.Keep || p.MaxAge > 0 && time.Since(s.CreatedAt) > p.MaxAge || p.MaxBytes > 0 && more > 0 && bytes+more > p.MaxBytes
		if stays := used[s.ID] || p.KeepTagged && len(s.Tags) > 0; unwanted && !stays {
			continue // older ones may stay in its room
		}
		bytes += more
		for _, id := range with {
			stay[id] = true
		}
	}
	return stay
}
