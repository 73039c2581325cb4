package match

import "container/heap"

// sorted is a heap for container/heap, the least first. Each of its members knows its place in it, so that it can be taken out from
// the middle; the place of one that is not in is -1.
type sorted[T any] struct {
	list  []T
	less  func(a, b T) bool
	place func(T) *int32
}

func (s *sorted[T]) Len() int           { return len(s.list) }
func (s *sorted[T]) Less(a, b int) bool { return s.less(s.list[a], s.list[b]) }

func (s *sorted[T]) Swap(a, b int) {
	s.list[a], s.list[b] = s.list[b], s.list[a]
	*s.place(s.list[a]), *s.place(s.list[b]) = int32(a), int32(b)
}

func (s *sorted[T]) Push(x any) {
	s.list = append(s.list, x.(T))
	*s.place(x.(T)) = int32(len(s.list) - 1)
}

func (s *sorted[T]) Pop() any {
	n := len(s.list) - 1
	x := s.list[n]
	clear(s.list[n:])
	s.list = s.list[:n]
	*s.place(x) = -1
	return x
}

func (s *sorted[T]) add(x T) { heap.Push(s, x) }

// remove takes a member out; one that is not in stays so.
func (s *sorted[T]) remove(x T) {
	if at := *s.place(x); at >= 0 {
		heap.Remove(s, int(at))
	}
}

// set puts a member where it belongs: in, in its order, or out.
func (s *sorted[T]) set(x T, in bool) {
	switch at := *s.place(x); {
	case !in:
		s.remove(x)
	case at < 0:
		s.add(x)
	default:
		heap.Fix(s, int(at))
	}
}
