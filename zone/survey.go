package zone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"thaw/chunk"
)

// Survey asks each node for which chunks it has the stripe that belongs there, and
// tells of each that answers, one after the other: of which it has it, and of which
// it does not. A node that does not answer within the deadline, or not rightly, is
// not told of. It reads no stripe.
func (c *Client) Survey(ctx context.Context, names []chunk.Name, told func(addr string, held, lacking []chunk.Name)) error {
	v := c.view.Load()
	if v == nil {
		return errors.New("zone: no members")
	}
	ctx, leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	of := map[*node][]StripeID{}
	for _, name := range names {
		for i, to := range v.at(name) {
			if to != nil {
				of[to] = append(of[to], StripeID{name, uint8(v.k), uint8(v.n), uint8(i)})
			}
		}
	}
	for _, to := range v.nodes {
		if len(of[to]) == 0 {
			continue
		}
		held, lacking, err := c.has(ctx, to, of[to])
		if ctx.Err() != nil {
			return fmt.Errorf("zone: survey: %w", ctx.Err())
		}
		if err == nil {
			told(to.addr, held, lacking)
		}
	}
	return nil
}

// has asks a node for stripes of different chunks.
func (c *Client) has(ctx context.Context, to *node, ids []StripeID) (held, lacking []chunk.Name, err error) {
	for some := range slices.Chunk(ids, MaxHave) {
		answers, err := c.askHave(ctx, to, some)
		if err != nil {
			return nil, nil, err
		}
		for i, id := range some {
			if answers[i] == 1 {
				held = append(held, id.Name)
			} else {
				lacking = append(lacking, id.Name)
			}
		}
	}
	return held, lacking, nil
}

// askHave sends one question to HavePath.
func (c *Client) askHave(ctx context.Context, to *node, ids []StripeID) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	body := make([]byte, 0, len(ids)*IDSize)
	for _, id := range ids {
		body = append(append(body, id.Name[:]...), id.K, id.N, id.Index)
	}
	r := c.request(ctx, http.MethodPost, to.addr, StripeID{}).Request
	r.URL.Path, r.ContentLength, r.Body = HavePath, int64(len(body)), io.NopCloser(bytes.NewReader(body))
	res, err := c.transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answers, err := io.ReadAll(io.LimitReader(res.Body, int64(len(ids))+1))
	drain(res)
	if err == nil && (res.StatusCode != http.StatusOK || len(answers) != len(ids)) {
		err = fmt.Errorf("%s: answered %d with %d bytes to %d stripes", to.addr, res.StatusCode, len(answers), len(ids))
	}
	return answers, err
}
