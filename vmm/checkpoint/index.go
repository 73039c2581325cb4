package checkpoint

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/paddockvm/paddock/vmm/hostfile"
)

// Extent is a run of blocks.
type Extent struct {
	First, Count int64
}

// Index lists the blocks of a delta.
type Index struct {
	// Size is the file's, in bytes.
	Size int64
	// Extents are in rising order and do not touch.
	Extents []Extent
}

// add notes a block, in any order; sort brings them into one.
func (x *Index) add(block int64) {
	if n := len(x.Extents); n > 0 && x.Extents[n-1].First+x.Extents[n-1].Count == block {
		x.Extents[n-1].Count++
		return
	}
	x.Extents = append(x.Extents, Extent{block, 1})
}

// sort orders the extents and joins those that touch. No block is in two of them.
func (x *Index) sort() {
	slices.SortFunc(x.Extents, func(a, b Extent) int { return cmp.Compare(a.First, b.First) })
	joined := x.Extents[:0]
	for _, e := range x.Extents {
		if n := len(joined); n > 0 && joined[n-1].First+joined[n-1].Count == e.First {
			joined[n-1].Count += e.Count
			continue
		}
		joined = append(joined, e)
	}
	x.Extents = joined
}

// Bytes is how much the delta holds.
func (x *Index) Bytes() int64 { return blocks(x.Extents) * Block }

func blocks(extents []Extent) (n int64) {
	for _, e := range extents {
		n += e.Count
	}
	return n
}

// indexFile is an index as it is stored: pairs of first block and count, one after the other.
type indexFile struct {
	Format  int     `json:"format"`
	Size    int64   `json:"size"`
	Block   int64   `json:"block"`
	Extents []int64 `json:"extents"`
}

// indexFormat changes when older indexes cannot be read any more.
const indexFormat = 1

// write makes the index's file, which nobody changes afterwards.
func (x *Index) write(path string) error {
	f := indexFile{Format: indexFormat, Size: x.Size, Block: Block, Extents: make([]int64, 0, 2*len(x.Extents))}
	for _, e := range x.Extents {
		f.Extents = append(f.Extents, e.First, e.Count)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return hostfile.WriteOnce(path, func(f *os.File) error {
		_, err := f.Write(append(b, '\n'))
		return err
	})
}

// ReadIndex reads an index, which has to be one that write could have written.
func ReadIndex(path string) (*Index, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var f indexFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("read index %s: %w", path, err)
	}
	x, err := f.index()
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", path, err)
	}
	return x, nil
}

func (f *indexFile) index() (*Index, error) {
	if f.Format != indexFormat || f.Block != Block || f.Size < 0 || len(f.Extents)%2 != 0 {
		return nil, fmt.Errorf("format %d with blocks of %d bytes is of another version, or broken", f.Format, f.Block)
	}
	x := &Index{Size: f.Size}
	most := (f.Size + Block - 1) / Block
	end := int64(-1) // where the extent before ended
	for i := 0; i < len(f.Extents); i += 2 {
		first, count := f.Extents[i], f.Extents[i+1]
		if first <= end || count < 1 || first > most || count > most-first {
			return nil, errors.New("its extents overlap, or lead out of the file")
		}
		x.Extents = append(x.Extents, Extent{first, count})
		end = first + count
	}
	return x, nil
}
