// What the component is made of: the plugin, and the router's interfaces. Only here are they named, so that tests run
// without them.

import { log as hostLog } from 'millrace:plugin/log@0.1.1';
import * as output from 'millrace:plugin/output@0.1.1';
import Plugin from '../redact-fields.js';
import { component, log, logTo } from './plugin.js';

logTo(hostLog);

const show = (values) => values.map((value) => (typeof value === 'string' ? value : toText(value))).join(' ');
const toText = (value) => (value instanceof Error ? `${value}\n${value.stack}` : JSON.stringify(value) ?? String(value));
const levels = { trace: 'trace', debug: 'debug', log: 'info', info: 'info', warn: 'warn', error: 'error' };
for (const [name, level] of Object.entries(levels)) console[name] = (...values) => log[level](show(values));

export const { lifecycle, process } = component(Plugin, output);
