package device

import "sync/atomic"

// touched knows which chunks were touched, if anybody wants to be told.
type touched struct {
	tell func(index uint32)
	bits []atomic.Uint64 // by place in Device.chunks
}

// OnTouch has tell called with the index of each chunk that is touched for the
// first time, before it is looked for. Calls may come at once, and hold up the
// read that makes them. It is called before the first read, or never.
func (d *Device) OnTouch(tell func(index uint32)) {
	d.touched = touched{tell, make([]atomic.Uint64, (len(d.chunks)+63)/64)}
}

// first tells whether this is the first touch that somebody is to be told of.
func (t *touched) first(place int) bool {
	if t.tell == nil {
		return false
	}
	word, bit := &t.bits[place/64], uint64(1)<<(place%64)
	return word.Load()&bit == 0 && word.Or(bit)&bit == 0
}
