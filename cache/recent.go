package cache

import "container/list"

// recent keeps what was used last, up to a total weight. It is not safe for
// concurrent use. Making room calls drop for what has to go.
type recent[T any] struct {
	limit int64
	drop  func(T)

	weight int64
	order  list.List // of weighted[T], the latest in front
}

type weighted[T any] struct {
	value  T
	weight int64
}

// add takes a value and gives its place. It may be dropped at once if it weighs
// more than the limit.
func (r *recent[T]) add(value T, weight int64) *list.Element {
	e := r.order.PushFront(weighted[T]{value, weight})
	r.weight += weight
	for r.weight > r.limit {
		r.remove(r.order.Back())
	}
	return e
}

// use moves a place to the front.
func (r *recent[T]) use(e *list.Element) { r.order.MoveToFront(e) }

// remove drops the value of a place.
func (r *recent[T]) remove(e *list.Element) {
	w := r.order.Remove(e).(weighted[T])
	r.weight -= w.weight
	r.drop(w.value)
}

func (r *recent[T]) clear() {
	for e := r.order.Back(); e != nil; e = r.order.Back() {
		r.remove(e)
	}
}
