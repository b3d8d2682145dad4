package millrace

// Default means the route's default destinations, whatever an earlier step said.
const Default = ""

// Output takes what a transform makes of the records of one batch. The router sends the items of one record in the order of
// the calls that brought them; so items are gathered in groups, each of which becomes one call, and those of one record only
// go to the group of the item before or a later one.
type Output struct {
	groups []*group
	source uint32 // the record at hand
	group  int    // the group that its last item went to
}

// Emit makes an item with that value (nil: a tombstone) of the record at hand and sends it to destination, a name of the
// route, or Default. It keeps the record's key, headers and timestamp unless they are set on it.
func (o *Output) Emit(destination string, value []byte) Item {
	group := o.groupFor(destination, false)
	group.sources = append(group.sources, o.source)
	group.values.push(value)
	return Item{group: group, index: len(group.sources) - 1}
}

// Forward sends the record at hand to destination as it is, without copying it: with the verdict Keep besides where it was
// going, with Drop only there.
func (o *Output) Forward(destination string) {
	group := o.groupFor(destination, true)
	group.sources = append(group.sources, o.source)
}

func (o *Output) groupFor(destination string, forward bool) *group {
	for ; o.group < len(o.groups); o.group++ {
		if found := o.groups[o.group]; found.forward == forward && found.destination == destination {
			return found
		}
	}
	o.groups = append(o.groups, &group{destination: destination, forward: forward})
	return o.groups[o.group]
}

// Item is an item just emitted; each method changes one thing about it and returns it.
type Item struct {
	group *group
	index int
	next  int // the group's change that the item's next one is, or comes after
}

// Key sets the key; nil makes it null.
func (i Item) Key(key []byte) Item {
	return i.change(setKeys, "", func(c *change) { c.bytes.push(key) })
}

// Timestamp sets the timestamp, milliseconds since 1970-01-01 UTC.
func (i Item) Timestamp(timestamp int64) Item {
	return i.change(setTimestamps, "", func(c *change) { c.timestamps = append(c.timestamps, timestamp) })
}

// Partition sets the partition, for a destination with `partition: plugin`.
func (i Item) Partition(partition int32) Item {
	return i.change(setPartitions, "", func(c *change) { c.partitions = append(c.partitions, partition) })
}

// Topic names the topic, for a destination with a `topic_pattern`, which it must match.
func (i Item) Topic(topic string) Item {
	return i.change(setTopics, "", func(c *change) { c.topics = append(c.topics, topic) })
}

// Header sets a header: where the first of that name stands (else last), in place of all of that name.
func (i Item) Header(name string, value []byte) Item {
	if value == nil {
		value = []byte{} // (null would remove it)
	}
	return i.change(setHeader, name, func(c *change) { c.bytes.push(value) })
}

// RemoveHeader removes all headers of that name.
func (i Item) RemoveHeader(name string) Item {
	return i.change(setHeader, name, func(c *change) { c.bytes.push(nil) })
}

// AddHeader adds a header after those that are there; nil gives it a null value.
func (i Item) AddHeader(name string, value []byte) Item {
	return i.change(addHeader, name, func(c *change) { c.bytes.push(value) })
}

// change packs what is changed on one item after the other into one call. Changes of one item keep their order.
func (i Item) change(kind kind, name string, push func(*change)) Item {
	for ; i.next < len(i.group.changes); i.next++ {
		if c := i.group.changes[i.next]; c.kind == kind && c.name == name && c.first+c.count == i.index {
			break
		}
	}
	if i.next == len(i.group.changes) {
		i.group.changes = append(i.group.changes, &change{kind: kind, name: name, first: i.index})
	}
	c := i.group.changes[i.next]
	push(c)
	c.count++
	i.next++
	return i
}

// group is items that go to the router in one call, or records forwarded in one.
type group struct {
	destination string
	forward     bool
	sources     []uint32
	values      Column
	changes     []*change
}

type kind uint8

const (
	setKeys kind = iota
	setTimestamps
	setPartitions
	setTopics
	setHeader
	addHeader
)

// change is one thing changed on the items of a group from first on.
type change struct {
	kind         kind
	name         string
	first, count int
	bytes        Column
	timestamps   []int64
	partitions   []int32
	topics       []string
}

// sink is where it all goes: the router (host.go) or a test (testing.go).
type sink interface {
	emit(destination string, sources []uint32, values Column) (first uint32)
	forward(destination string, sources []uint32)
	setKeys(first uint32, keys Column)
	setTimestamps(first uint32, timestamps []int64)
	setPartitions(first uint32, partitions []int32)
	setTopics(first uint32, topics []string)
	setHeader(first uint32, name string, values Column)
	addHeader(first uint32, name string, values Column)
}

func (o *Output) finish(to sink) {
	for _, group := range o.groups {
		if group.forward {
			to.forward(group.destination, group.sources)
			continue
		}
		base := to.emit(group.destination, group.sources, group.values)
		for _, c := range group.changes {
			first := base + uint32(c.first)
			switch c.kind {
			case setKeys:
				to.setKeys(first, c.bytes)
			case setTimestamps:
				to.setTimestamps(first, c.timestamps)
			case setPartitions:
				to.setPartitions(first, c.partitions)
			case setTopics:
				to.setTopics(first, c.topics)
			case setHeader:
				to.setHeader(first, c.name, c.bytes)
			case addHeader:
				to.addHeader(first, c.name, c.bytes)
			}
		}
	}
}
