package frontend

import (
	"context"
	"maps"
	"strings"
	"unicode/utf8"

	"thaw/functions"
	"thaw/lambdaapi"
)

// Limits of a resource's tags.
const (
	mostTags     = 50
	mostTagKey   = 128 // characters
	mostTagValue = 256
)

func checkTags(tags map[string]string) error {
	if len(tags) > mostTags {
		return refuse("Number of tags exceeds resource tag limit.")
	}
	for k, v := range tags {
		switch {
		case k == "" || utf8.RuneCountInString(k) > mostTagKey || utf8.RuneCountInString(v) > mostTagValue:
			return refuse("A tag's key must have 1 to %d characters, its value at most %d.", mostTagKey, mostTagValue)
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			return refuse("Tag keys must not start with aws:, which is the platform's own.")
		}
	}
	return nil
}

// tagged reads which function's tags a request is about; only functions have tags here.
func (c *control) tagged(in call, arn string) (functions.Name, error) {
	n, err := c.name(in, arn, nil)
	if err == nil && n.Qualifier != "" {
		err = refuse("Tags on function aliases and versions are not supported. Please specify a function ARN.")
	}
	return n, err
}

func (c *control) tagResource(ctx context.Context, in call, q *lambdaapi.TagResourceRequest) (none, error) {
	n, err := c.tagged(in, q.Resource)
	if err != nil {
		return nil, err
	}
	if len(q.Tags) == 0 {
		return nil, refuse("An error occurred and the request cannot be processed.")
	}
	_, err = c.change(ctx, n, func(f *functions.Function) error {
		tags := maps.Clone(f.Tags)
		if tags == nil {
			tags = map[string]string{}
		}
		maps.Copy(tags, q.Tags)
		f.Tags = tags
		return checkTags(tags)
	})
	return nil, err
}

func (c *control) untagResource(ctx context.Context, in call, q *lambdaapi.UntagResourceRequest) (none, error) {
	n, err := c.tagged(in, q.Resource)
	if err != nil {
		return nil, err
	}
	_, err = c.change(ctx, n, func(f *functions.Function) error {
		for _, key := range q.TagKeys {
			delete(f.Tags, key)
		}
		return nil
	})
	return nil, err
}

func (c *control) listTags(ctx context.Context, in call, q *lambdaapi.ListTagsRequest) (*lambdaapi.ListTagsResponse, error) {
	n, err := c.tagged(in, q.Resource)
	if err != nil {
		return nil, err
	}
	f, err := c.find(ctx, n)
	if err != nil {
		return nil, err
	}
	tags := f.Tags
	if tags == nil {
		tags = map[string]string{}
	}
	return &lambdaapi.ListTagsResponse{Tags: tags}, nil
}
