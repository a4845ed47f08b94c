package node

import (
	"errors"
	"fmt"
	"time"

	"thaw/zone"
	"thaw/zone/flash"
)

// disk is the lower tier: the flash store, and the queue in front of it.
type disk struct {
	n     *Node
	store *flash.Store
	queue chan zone.StripeID
	// gone is what memory has evicted. Uses there are none of flash's until
	// then: they would cost every GET a lock.
	gone chan zone.StripeID

	warned time.Time // write's: when a failure was told of last
}

func openDisk(n *Node, o Options) (*disk, error) {
	s, err := flash.Open(o.Flash, flash.Options{Size: o.FlashSize, Correlated: correlated, Warn: o.Warn})
	if err != nil {
		return nil, err
	}
	d := &disk{n: n, store: s, queue: make(chan zone.StripeID, queued), gone: make(chan zone.StripeID, queued)}
	n.mem.gone = d.gone
	return d, nil
}

func (d *disk) close() error { return d.store.Close() }

// key is what flash calls a stripe.
func key(id zone.StripeID) flash.Key { return flash.Key(id.Append(make([]byte, 0, zone.IDSize))) }

// find reads a stripe, and takes it into memory for the next who wants it.
func (d *disk) find(id zone.StripeID, f *found) (bool, error) {
	if !d.contains(id) {
		return false, nil
	}
	buf, b, err := d.read(id)
	if b == nil {
		return false, err
	}
	// Whether there is room for it or not, it can be sent.
	_, _ = d.n.mem.add(id, b, "", time.Now())
	copy(f.head[:], b)
	f.payload, f.size, f.buffer = b[zone.HeaderSize:], len(b)-zone.HeaderSize, buf
	return true, nil
}

// read gives a stripe in a buffer, or nil if there is none that is whole.
func (d *disk) read(id zone.StripeID) (*buffer, []byte, error) {
	buf, err := d.n.buffers.get()
	if err != nil {
		return nil, nil, err
	}
	b, err := d.store.Get(key(id), buf.b)
	buf.used = len(b)
	if err == nil {
		var s zone.Stripe
		if s, err = zone.ParseStripe(b); err == nil && s.ID() == id {
			return buf, b, nil
		}
		// It was so when it was put: flash has checked it.
		d.n.options.Warn(fmt.Errorf("node: dropping what flash has for stripe %s: it is another or none", id))
		d.remove(id)
		d.n.counts.corrupt.Add(1)
	}
	d.n.buffers.put(buf)
	if errors.Is(err, flash.ErrCorrupt) {
		d.n.options.Warn(fmt.Errorf("node: stripe %s: %w", id, err))
		d.n.counts.corrupt.Add(1)
	}
	return nil, nil, nil // for the zone it is missing; flash has counted why
}

// tag gives the ETag of the copy on flash, or "".
func (d *disk) tag(id zone.StripeID) (string, error) {
	if !d.contains(id) {
		return "", nil
	}
	buf, b, err := d.read(id)
	if b == nil {
		return "", err
	}
	defer d.n.buffers.put(buf)
	return zone.ETag(b), nil
}

func (d *disk) contains(id zone.StripeID) bool { return d.store.Has(key(id)) }

// remove forgets a stripe.
func (d *disk) remove(id zone.StripeID) { _, _ = d.store.Remove(key(id)) }

// enqueue has a stripe of memory written to flash, if the queue has room soon.
func (d *disk) enqueue(id zone.StripeID) {
	select {
	case d.queue <- id:
		return
	default:
	}
	t := time.NewTimer(putWait)
	defer t.Stop()
	select {
	case d.queue <- id:
	case <-t.C:
		d.n.counts.flashSkipped.Add(1)
	}
}

// write writes what is queued until the node is closed, and then what is left.
func (d *disk) write() {
	buf := make([]byte, zone.MaxStripe)
	for {
		select {
		case id := <-d.queue:
			d.demote(id, buf)
			continue
		case id := <-d.gone:
			d.store.Touch(key(id))
			continue
		case <-d.n.closed:
		}
		break
	}
	for until := time.Now().Add(d.n.bounds.drain); time.Now().Before(until); {
		select {
		case id := <-d.queue:
			d.demote(id, buf)
		default:
			return
		}
	}
}

// put writes a stripe. One that has just been replaced in memory may have been on
// its way here when keep removed it: what flash has then is not what was put last.
func (d *disk) put(id zone.StripeID, b []byte) error {
	added, err := d.store.Put(key(id), b)
	if added || err != nil {
		return err
	}
	if tag, err := d.tag(id); err != nil || tag == zone.ETag(b) {
		return err
	}
	d.remove(id)
	_, err = d.store.Put(key(id), b)
	return err
}

// demote copies a stripe from memory to flash.
func (d *disk) demote(id zone.StripeID, buf []byte) {
	var f found
	if !d.n.mem.peek(id, &f) {
		d.n.counts.flashSkipped.Add(1)
		return
	}
	defer d.n.release(&f)
	b := buf[:zone.HeaderSize+f.size]
	copy(b, f.head[:])
	err := d.n.mem.arena.read(f.slot, b[zone.HeaderSize:], 0)
	if err == nil {
		err = d.put(id, b)
	}
	if err != nil {
		d.n.counts.flashFailed.Add(1)
		if now := time.Now(); now.Sub(d.warned) >= warnEvery { // a full queue of them may follow
			d.warned = now
			d.n.options.Warn(fmt.Errorf("node: keeping stripes in memory only (%d so far): %w", d.n.counts.flashFailed.Load(), err))
		}
		return
	}
	d.n.counts.flashWritten.Add(1)
}
