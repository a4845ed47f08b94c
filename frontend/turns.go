package frontend

import (
	"context"
	"sync"
)

const (
	// logReads bounds the requests for logs that are answered at once, and
	// logReadsEach those of one account: each may hold maxLogBytes of each worker.
	// More wait, as long as a worker is waited for, and are throttled then.
	logReads, logReadsEach = 8, 2
)

// turns has few requests be under way, and fewer of one account: one that sends
// many keeps itself waiting, or leaves its answers unread.
type turns struct {
	all chan struct{} // one for each that is under way

	mu sync.Mutex
	of map[string]*accountTurns // of accounts that have or want one; guarded by mu
}

// accountTurns are those of one account.
type accountTurns struct {
	mine  chan struct{} // one for each that is under way, or waits for the others'
	users int           // and those who wait; guarded by turns.mu
}

func newTurns() *turns {
	return &turns{all: make(chan struct{}, logReads), of: map[string]*accountTurns{}}
}

// take waits for a turn of an account. done gives it back.
func (t *turns) take(ctx context.Context, account string) (done func(), err error) {
	t.mu.Lock()
	a := t.of[account]
	if a == nil {
		a = &accountTurns{mine: make(chan struct{}, logReadsEach)}
		t.of[account] = a
	}
	a.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if a.users--; a.users == 0 {
			delete(t.of, account)
		}
	}
	for n, turn := range []chan struct{}{a.mine, t.all} {
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			if n > 0 {
				<-a.mine
			}
			leave()
			return nil, context.Cause(ctx)
		}
	}
	return func() {
		<-t.all
		<-a.mine
		leave()
	}, nil
}
