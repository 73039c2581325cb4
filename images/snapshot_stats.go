package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// Stats is what the snapshots and templates of this host take, and how often a template was there when it was wanted.
type Stats struct {
	Images []ImageStats `json:"images"`
	// Total sums the images up; Parts are the files that snapshots have in common, Flattened the cached templates made of them.
	Total     Usage `json:"total"`
	Parts     Usage `json:"parts"`
	Flattened Usage `json:"flattened"`
	Templates Usage `json:"templates"`
}

// ImageStats are those of the snapshots of one image.
type ImageStats struct {
	Image string `json:"image"`
	Usage
	// Hits are how often a template, of the image or of its snapshots, was there when a pool wanted it, Misses how often it had to be made.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
}

// Usage is what files take.
type Usage struct {
	// Count is how many snapshots, templates or parts.
	Count int `json:"count"`
	// ApparentBytes are the files' sizes, RealBytes what they take on the disk, SharedBytes what of that other names in the store share.
	ApparentBytes int64 `json:"apparent_bytes"`
	RealBytes     int64 `json:"real_bytes"`
	SharedBytes   int64 `json:"shared_bytes"`
}

func (u *Usage) add(v Usage) {
	u.Count += v.Count
	u.ApparentBytes += v.ApparentBytes
	u.RealBytes += v.RealBytes
	u.SharedBytes += v.SharedBytes
}

// Stats measures.
func (n *Snapshots) Stats(ctx context.Context) (st Stats, err error) {
	release, err := n.shared(ctx)
	if err != nil {
		return st, err
	}
	defer release()
	list, listErr := n.List()
	images := map[string]*ImageStats{}
	of := func(image string) *ImageStats {
		if images[image] == nil {
			images[image] = &ImageStats{Image: image}
		}
		return images[image]
	}
	for _, s := range list {
		u := usage(s.dir)
		of(s.Of).Usage.add(u)
		st.Total.add(u)
	}
	for image, c := range n.store.counts() {
		i := of(image)
		i.Hits, i.Misses = c.Hits, c.Misses
	}
	for _, i := range images {
		st.Images = append(st.Images, *i)
	}
	slices.SortFunc(st.Images, func(a, b ImageStats) int { return cmp.Compare(a.Image, b.Image) })
	st.Parts = usage(filepath.Join(n.dir, "parts"))
	st.Parts.Count = entries(filepath.Join(n.dir, "parts"))
	for dir, to := range map[string]*Usage{filepath.Join(n.dir, "flat"): &st.Flattened, filepath.Join(n.store.dir, "templates"): &st.Templates} {
		subs, err := os.ReadDir(dir)
		listErr = errors.Join(listErr, err)
		for _, sub := range subs {
			to.add(usage(filepath.Join(dir, sub.Name())))
		}
	}
	return st, listErr
}

func entries(dir string) int {
	e, _ := os.ReadDir(dir) // none where it cannot be read
	return len(e)
}

// usage is one directory's.
func usage(dir string) Usage {
	u := Usage{Count: 1}
	list, _ := os.ReadDir(dir) // what is removed meanwhile takes nothing
	for _, e := range list {
		var st syscall.Stat_t
		if syscall.Lstat(filepath.Join(dir, e.Name()), &st) != nil {
			continue
		}
		u.ApparentBytes += st.Size
		u.RealBytes += st.Blocks * 512
		if st.Nlink > 1 {
			u.SharedBytes += st.Blocks * 512
		}
	}
	return u
}

// hits counts how often templates were there.
type hits struct {
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
}

func (s *Store) hitsFile() string { return filepath.Join(s.dir, "hits.json") }

// counts gives the counters, by image.
func (s *Store) counts() map[string]hits {
	counted := map[string]hits{}
	if b, err := os.ReadFile(s.hitsFile()); err == nil {
		_ = json.Unmarshal(b, &counted) // what is broken begins anew
	}
	return counted
}

// count notes that a template of an image was wanted, for all processes of this host. A number lost is no harm.
func (s *Store) count(ctx context.Context, image string, hit bool) {
	release, err := s.flock(ctx, "hits", syscall.LOCK_EX)
	if err != nil {
		return
	}
	defer release()
	counted := s.counts()
	if counted == nil {
		counted = map[string]hits{}
	}
	c := counted[image]
	if hit {
		c.Hits++
	} else {
		c.Misses++
	}
	counted[image] = c
	b, err := json.Marshal(counted)
	if err != nil {
		return
	}
	tmp := s.hitsFile() + tmpSuffix
	if os.WriteFile(tmp, append(b, '\n'), 0o644) == nil {
		_ = os.Rename(tmp, s.hitsFile())
	}
}
