//go:build linux

package verify

func (c *client) operateControl() {}
